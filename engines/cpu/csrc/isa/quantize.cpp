// Activations to FP4 blocks, in the arithmetic of the libraries that write the checkpoints: float32, division (never a
// reciprocal unless it is a power of two), round to nearest with ties to the even code. Results do not depend on the
// instruction set: there is nothing to fuse and no sum. A block with a NaN or infinity gets a NaN scale, so that every
// output of its row is NaN; its codes are zero.

#include "float_bits.h"
#include "kernels.h"
#include "quantize_blocks.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// 0 <= magnitude <= 6 to the nearest E2M1 value, times two. In [0,2) the doubled grid is whole numbers, in [2,4)
/// even ones, in [4,6] multiples of four: one rounding at the right power of two, whose ties to even are E2M1's.
inline float doubled_e2m1(float magnitude) {
  const float up = magnitude < 2.0F ? 2.0F : (magnitude < 4.0F ? 1.0F : 0.5F);
  const float down = magnitude < 2.0F ? 1.0F : (magnitude < 4.0F ? 2.0F : 4.0F);
  return ((magnitude * up + kMagic) - kMagic) * down;
}

#if defined(NYBBLE_ISA_AVX512)

// The portable code below in vectors; the same operations, so the same bits.

template <int Group>
inline std::uint32_t largest_magnitude(const float* x) {
  __m512i largest = magnitude_bits(_mm512_loadu_ps(x));
  if (Group == 32) largest = _mm512_max_epu32(largest, magnitude_bits(_mm512_loadu_ps(x + 16)));
  return _mm512_reduce_max_epu32(largest);
}

template <int Group>
inline void write_codes(const float* scaled, std::int8_t* codes) {
  const __m512 magic = _mm512_set1_ps(kMagic);
  for (int i = 0; i < Group; i += 16) {
    const __m512 x = _mm512_loadu_ps(scaled + i);
    const __m512 absolute = _mm512_castsi512_ps(magnitude_bits(x));
    // The maximum with 0 as second operand is 0 for NaN.
    const __m512 m = _mm512_min_ps(_mm512_max_ps(absolute, _mm512_setzero_ps()), _mm512_set1_ps(6.0F));
    const __mmask16 below_two = _mm512_cmp_ps_mask(m, _mm512_set1_ps(2.0F), _CMP_LT_OQ);
    const __mmask16 below_four = _mm512_cmp_ps_mask(m, _mm512_set1_ps(4.0F), _CMP_LT_OQ);
    __m512 up = _mm512_mask_blend_ps(below_four, _mm512_set1_ps(0.5F), _mm512_set1_ps(1.0F));
    __m512 down = _mm512_mask_blend_ps(below_four, _mm512_set1_ps(4.0F), _mm512_set1_ps(2.0F));
    up = _mm512_mask_blend_ps(below_two, up, _mm512_set1_ps(2.0F));
    down = _mm512_mask_blend_ps(below_two, down, _mm512_set1_ps(1.0F));
    const __m512 rounded = _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(m, up), magic), magic);
    const __m512i doubled = _mm512_cvtps_epi32(_mm512_mul_ps(rounded, down));
    const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(x));
    const __m512i signed_codes = _mm512_mask_sub_epi32(doubled, negative, _mm512_setzero_si512(), doubled);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(signed_codes));
  }
}

#else

/// Largest |x| of a block as its bit pattern: unsigned order equals numeric order, and NaN comes out on top.
template <int Group>
inline std::uint32_t largest_magnitude(const float* x) {
  std::uint32_t bits[Group];
  std::memcpy(bits, x, sizeof(bits));
  std::uint32_t largest = 0;
  for (int i = 0; i < Group; ++i) {
    const std::uint32_t magnitude = bits[i] & 0x7fffffffU;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <int Group>
inline void write_codes(const float* scaled, std::int8_t* codes) {
  float doubled[Group];
  for (int i = 0; i < Group; ++i) {
    const float magnitude = __builtin_fabsf(scaled[i]);
    // 0 / 0, where a scale underflowed, counts as 0.
    const float rounded = doubled_e2m1(magnitude < 6.0F ? magnitude : (magnitude >= 6.0F ? 6.0F : 0.0F));
    doubled[i] = scaled[i] < 0.0F ? -rounded : rounded;
  }
  for (int i = 0; i < Group; ++i) codes[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(doubled[i]));
}

#endif

inline void write_not_a_number(int group, std::int8_t* codes, float* scale) {
  std::memset(codes, 0, static_cast<std::size_t>(group));
  *scale = bits_to_float(0x7fc00000U);
}

/// Compressed-tensors' rule: exponent of amax, one higher from mantissa 1.75 on, minus 2.
void quantize_mxfp4_block(const float* x, std::int8_t* codes, float* scale) {
  const std::uint32_t largest = largest_magnitude<32>(x);
  if (largest >= kInfinityBits) return write_not_a_number(32, codes, scale);
  const std::int32_t exponent = static_cast<std::int32_t>((largest + (1U << 21)) >> 23) - 2;
  const std::int32_t stored = exponent > 0 ? exponent : 0;  // E8M0 byte, at most 253
  *scale = stored > 0 ? bits_to_float(static_cast<std::uint32_t>(stored) << 23) : 0x1p-127F;
  const float inverse = bits_to_float(static_cast<std::uint32_t>(254 - stored) << 23);  // exact: a power of two
  float scaled[32];
  for (int i = 0; i < 32; ++i) scaled[i] = x[i] * inverse;
  write_codes<32>(scaled, codes);
}

/// Nearest E4M3 value (ties to even) of 0 <= value <= 448.
inline float round_e4m3(float value) {
  if (value < 0x1p-6F) return ((value * 512.0F + kMagic) - kMagic) * 0x1p-9F;
  const std::uint32_t bits = float_to_bits(value);
  return bits_to_float((bits + 0x7ffffU + ((bits >> 20) & 1U)) & 0xfff00000U);
}

/// The block's E4M3 scale.
inline float nvfp4_scale(float largest, float input_scale, bool modelopt) {
  if (modelopt) {  // input_scale multiplies
    float wanted = largest / (6.0F * input_scale);
    wanted = wanted < 0x1p-9F ? 0x1p-9F : (wanted < 448.0F ? wanted : 448.0F);
    return round_e4m3(largest == 0.0F ? 1.0F : wanted);
  }
  const float wanted = input_scale * (largest / 6.0F);  // input_scale divides
  const float block_scale = round_e4m3(wanted < 448.0F ? wanted : 448.0F);
  return block_scale == 0.0F ? 0.125F : block_scale;
}

void quantize_nvfp4_block(const float* x, float input_scale, bool modelopt, std::int8_t* codes, float* scale) {
  const std::uint32_t largest = largest_magnitude<16>(x);
  if (largest >= kInfinityBits) return write_not_a_number(16, codes, scale);
  *scale = nvfp4_scale(bits_to_float(largest), input_scale, modelopt);
  float scaled[16];
  const float multiplier = modelopt ? *scale * input_scale : *scale / input_scale;
  for (int i = 0; i < 16; ++i) scaled[i] = x[i] / multiplier;
  write_codes<16>(scaled, codes);
}

/// Blocks [begin, end): four at a time where `together` takes them, else each by itself.
template <typename Together, typename Alone>
void for_blocks(int64_t begin, int64_t end, const Together& together, const Alone& alone) {
  for (int64_t block = begin; block < end; block += kBlocksTogether) {
    if (end - block >= kBlocksTogether && together(block)) continue;
    for (int64_t b = block; b < min64(block + kBlocksTogether, end); ++b) alone(b);
  }
}

}  // namespace

void quantize_mxfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t num_blocks = args.num_columns / 32;
  for_blocks(
      row_begin * num_blocks, row_end * num_blocks,
      [&](int64_t b) { return quantize_mxfp4_blocks(args.x + b * 32, args.codes + b * 32, args.scales + b); },
      [&](int64_t b) { quantize_mxfp4_block(args.x + b * 32, args.codes + b * 32, args.scales + b); });
}

void quantize_nvfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t num_blocks = args.num_columns / 16;
  for_blocks(
      row_begin * num_blocks, row_end * num_blocks,
      [&](int64_t b) { return quantize_nvfp4_blocks(args, args.x + b * 16, args.codes + b * 16, args.scales + b); },
      [&](int64_t b) {
        quantize_nvfp4_block(args.x + b * 16, args.input_scale, args.modelopt, args.codes + b * 16, args.scales + b);
      });
}

}  // namespace nybble::NYBBLE_ISA
