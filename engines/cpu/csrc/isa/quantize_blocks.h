#pragma once
// Activations to FP4 codes, four blocks side by side where there is AVX-512: the bits of quantize.cpp's block by block.

#include "float_bits.h"
#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to nearest even
constexpr std::uint32_t kInfinityBits = 0x7f800000U;

#if defined(NYBBLE_ISA_AVX512)

inline __m512i magnitude_bits(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

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

/// False, and nothing written, where one of the four holds a NaN or infinity.
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

/// `round_e4m3` of each lane.
inline __m128 round_e4m3(__m128 values) {
  const __m128 magic = _mm_set1_ps(kMagic);
  const __m128 steps = _mm_sub_ps(_mm_add_ps(_mm_mul_ps(values, _mm_set1_ps(512.0F)), magic), magic);
  const __m128i bits = _mm_castps_si128(values);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 20), _mm_set1_epi32(1));
  const __m128i rounded = _mm_and_si128(_mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7ffff))),
                                        _mm_set1_epi32(static_cast<int>(0xfff00000U)));
  const __mmask8 subnormal = _mm_cmp_ps_mask(values, _mm_set1_ps(0x1p-6F), _CMP_LT_OQ);
  return _mm_mask_mul_ps(_mm_castsi128_ps(rounded), subnormal, steps, _mm_set1_ps(0x1p-9F));
}

/// `nvfp4_scale` of each lane.
inline __m128 nvfp4_scales(__m128 largest, float input_scale, bool modelopt) {
  if (modelopt) {
    const __m128 wanted = _mm_div_ps(largest, _mm_set1_ps(6.0F * input_scale));
    const __m128 bounded = _mm_min_ps(_mm_max_ps(_mm_set1_ps(0x1p-9F), wanted), _mm_set1_ps(448.0F));
    const __mmask8 zeros = _mm_cmp_ps_mask(largest, _mm_setzero_ps(), _CMP_EQ_OQ);
    return round_e4m3(_mm_mask_mov_ps(bounded, zeros, _mm_set1_ps(1.0F)));
  }
  const __m128 wanted = _mm_mul_ps(_mm_set1_ps(input_scale), _mm_div_ps(largest, _mm_set1_ps(6.0F)));
  const __m128 scales = round_e4m3(_mm_min_ps(wanted, _mm_set1_ps(448.0F)));
  const __mmask8 zeros = _mm_cmp_ps_mask(scales, _mm_setzero_ps(), _CMP_EQ_OQ);
  return _mm_mask_mov_ps(scales, zeros, _mm_set1_ps(0.125F));
}

/// False, and nothing written, where one of the four has to be computed by itself.
///
/// Codes are those of a division, without one: q = a * (1 / b), corrected once by (a - q * b) * (1 / b), is less than a
/// float's step off. That could matter where a code ends, and does not: all 2^23 mantissas of b were tried there, with
/// the numbers a up to three floats away (tests/quantize_tests.cpp). Exponents do not count: divisors in the bounds
/// below leave no quotient above 0.2 a remainder that is rounded.
bool quantize_nvfp4_blocks(const QuantizeArgs& args, const float* x, std::int8_t* codes, float* scales) {
  const __m128i bits = largest_lanes(magnitude_bits(_mm512_loadu_ps(x)), magnitude_bits(_mm512_loadu_ps(x + 16)),
                                     magnitude_bits(_mm512_loadu_ps(x + 32)), magnitude_bits(_mm512_loadu_ps(x + 48)));
  const __m128 largest = _mm_castsi128_ps(bits);
  const __m128 chosen = nvfp4_scales(largest, args.input_scale, args.modelopt);
  const __m128 input_scale = _mm_set1_ps(args.input_scale);
  const __m128 divisors = args.modelopt ? _mm_mul_ps(chosen, input_scale) : _mm_div_ps(chosen, input_scale);
  // Also false for a NaN, and for an infinity, which is above any product with a divisor in bounds.
  const __mmask8 small = _mm_cmp_ps_mask(largest, _mm_mul_ps(divisors, _mm_set1_ps(6.5F)), _CMP_LT_OQ);
  const __mmask8 above = _mm_cmp_ps_mask(divisors, _mm_set1_ps(0x1p-80F), _CMP_GT_OQ);
  const __mmask8 below = _mm_cmp_ps_mask(divisors, _mm_set1_ps(0x1p80F), _CMP_LT_OQ);
  if ((small & above & below) != 15) return false;
  _mm_storeu_ps(scales, chosen);
  const __m512 inverses = _mm512_castps128_ps512(_mm_div_ps(_mm_set1_ps(1.0F), divisors));
  __m512i doubled[4];
  for (int b = 0; b < 4; ++b) {
    const __m512 values = _mm512_loadu_ps(x + b * 16);
    const __m512 inverse = _mm512_permutexvar_ps(_mm512_set1_epi32(b), inverses);
    const __m512 divisor = _mm512_permutexvar_ps(_mm512_set1_epi32(b), _mm512_castps128_ps512(divisors));
    __m512 quotient = _mm512_mul_ps(values, inverse);
    quotient = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, divisor, values), inverse, quotient);
    doubled[b] = doubled_codes(quotient);
  }
  _mm512_storeu_si512(codes, narrow(doubled[0], doubled[1], doubled[2], doubled[3]));
  return true;
}

#else

constexpr int kBlocksTogether = 1;

bool quantize_mxfp4_blocks(const float*, std::int8_t*, float*) { return false; }

bool quantize_nvfp4_blocks(const QuantizeArgs&, const float*, std::int8_t*, float*) { return false; }

#endif

}  // namespace

}  // namespace nybble::NYBBLE_ISA
