// Activations to FP4 blocks, in the arithmetic of the libraries that write the checkpoints: float32, division (never a
// reciprocal unless it is a power of two), round to nearest with ties to the even code. Results do not depend on the
// instruction set: there is nothing to fuse and no sum. A block with a NaN or infinity gets a NaN scale, so that every
// output of its row is NaN; its codes are zero.

#include "float_bits.h"
#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to nearest even

/// 0 <= magnitude <= 6 to the nearest E2M1 value, times two. In [0,2) the doubled grid is whole numbers, in [2,4)
/// even ones, in [4,6] multiples of four: one rounding at the right power of two, whose ties to even are E2M1's.
inline float doubled_e2m1(float magnitude) {
  const float up = magnitude < 2.0F ? 2.0F : (magnitude < 4.0F ? 1.0F : 0.5F);
  const float down = magnitude < 2.0F ? 1.0F : (magnitude < 4.0F ? 2.0F : 4.0F);
  return ((magnitude * up + kMagic) - kMagic) * down;
}

#if defined(NYBBLE_ISA_AVX512)

// The portable code below in vectors; the same operations, so the same bits.

inline __m512i magnitude_bits(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

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

constexpr std::uint32_t kInfinityBits = 0x7f800000U;

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

#if defined(NYBBLE_ISA_AVX512)

/// The largest lanes of four vectors.
inline __m128i largest_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_max_epu32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/// Doubled E2M1 codes of lanes below 7 in magnitude, which round to 6 at most. Doubled, the grid has steps of 1 below
/// 4, 2 below 8 and 4 above: adding and subtracting kMagic times the step rounds to it, ties to the even code.
inline __m512i doubled_codes(__m512 scaled) {
  const __m512 doubled = _mm512_add_ps(scaled, scaled);
  const __m512 magnitude = _mm512_castsi512_ps(magnitude_bits(doubled));
  const __mmask16 from_four = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(4.0F), _CMP_GE_OQ);
  const __mmask16 from_eight = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(8.0F), _CMP_GE_OQ);
  __m512 magic = _mm512_mask_blend_ps(from_four, _mm512_set1_ps(kMagic), _mm512_set1_ps(2.0F * kMagic));
  magic = _mm512_mask_blend_ps(from_eight, magic, _mm512_set1_ps(4.0F * kMagic));
  return _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_add_ps(doubled, magic), magic));
}

/// 64 small numbers as bytes, in order.
inline __m512i narrow(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

constexpr int kBlocksTogether = 4;

/// Four blocks side by side, as the portable code below; false, and nothing written, where one holds a NaN or infinity.
bool quantize_mxfp4_blocks(const float* x, std::int8_t* codes, float* scales) {
  __m512i largest[kBlocksTogether];
  for (int b = 0; b < kBlocksTogether; ++b) {
    largest[b] =
        _mm512_max_epu32(magnitude_bits(_mm512_loadu_ps(x + b * 32)), magnitude_bits(_mm512_loadu_ps(x + b * 32 + 16)));
  }
  const __m128i bits = largest_lanes(largest[0], largest[1], largest[2], largest[3]);
  if (_mm_cmpge_epu32_mask(bits, _mm_set1_epi32(static_cast<int>(kInfinityBits))) != 0) return false;
  const __m128i exponent =
      _mm_sub_epi32(_mm_srli_epi32(_mm_add_epi32(bits, _mm_set1_epi32(1 << 21)), 23), _mm_set1_epi32(2));
  const __m128i stored = _mm_max_epi32(exponent, _mm_setzero_si128());
  const __mmask8 normal = _mm_test_epi32_mask(stored, stored);
  const __m128i least = _mm_set1_epi32(0x00400000);  // 2^-127
  _mm_storeu_si128(reinterpret_cast<__m128i*>(scales), _mm_mask_slli_epi32(least, normal, stored, 23));
  const __m128i inverses = _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(254), stored), 23);
  for (int half = 0; half < 2; ++half) {
    __m512i doubled[4];
    for (int i = 0; i < 4; ++i) {
      const __m512 inverse = _mm512_castsi512_ps(
          _mm512_permutexvar_epi32(_mm512_set1_epi32(half * 2 + i / 2), _mm512_castsi128_si512(inverses)));
      doubled[i] = doubled_codes(_mm512_mul_ps(_mm512_loadu_ps(x + half * 64 + i * 16), inverse));
    }
    _mm512_storeu_si512(codes + half * 64, narrow(doubled[0], doubled[1], doubled[2], doubled[3]));
  }
  return true;
}

#else

constexpr int kBlocksTogether = 1;

bool quantize_mxfp4_blocks(const float*, std::int8_t*, float*) { return false; }

#endif

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

}  // namespace

void quantize_mxfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t num_blocks = args.num_columns / 32;
  const int64_t end = row_end * num_blocks;
  for (int64_t block = row_begin * num_blocks; block < end;) {
    const float* x = args.x + block * 32;
    if (end - block >= kBlocksTogether && quantize_mxfp4_blocks(x, args.codes + block * 32, args.scales + block)) {
      block += kBlocksTogether;
      continue;
    }
    quantize_mxfp4_block(x, args.codes + block * 32, args.scales + block);
    ++block;
  }
}

void quantize_nvfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t num_blocks = args.num_columns / 16;
  for (int64_t block = row_begin * num_blocks; block < row_end * num_blocks; ++block) {
    quantize_nvfp4_block(args.x + block * 16, args.input_scale, args.modelopt, args.codes + block * 16,
                         args.scales + block);
  }
}

}  // namespace nybble::NYBBLE_ISA
