#pragma once
// A block's scales for the 16 outputs of a panel, whichever form they are packed in (packed_scales.h).

#include "../packed_scales.h"
#include "simd.h"

namespace nybble::NYBBLE_ISA {

/// Of the shared form: 2^(byte - 127 + exponent). `scales`: the panel's, or those of the superblock of block 0.
static inline F16 shared_block_scales(const std::uint8_t* scales, int64_t block, int exponent) {
  const std::uint8_t* lowest = scales + block / kSharedBlocks * kSharedScaleBytes;
  const auto place = static_cast<int>(block % kSharedBlocks * 2);
#if defined(NYBBLE_ISA_AVX512) || defined(NYBBLE_ISA_AVX2)
  const __m128i shifts = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lowest + kPanelRows));
  const __m128i above = _mm_and_si128(_mm_srl_epi16(shifts, _mm_cvtsi32_si128(place)), _mm_set1_epi8(kMaxShift));
  const __m128i bytes = _mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lowest)), above);
  const __m128i exponents = _mm_add_epi8(bytes, _mm_set1_epi8(static_cast<char>(exponent)));
#if defined(NYBBLE_ISA_AVX512)
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(exponents), 23))};
#else
  const auto half = [](__m128i eight) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(eight), 23));
  };
  return {half(exponents), half(_mm_srli_si128(exponents, 8))};
#endif
#else
  alignas(64) float values[kPanelRows];
  for (int lane = 0; lane < kPanelRows; ++lane) {
    const int byte = lowest[lane] + ((lowest[kPanelRows + lane] >> place) & kMaxShift);
    const std::int32_t bits = (byte + exponent) << 23;
    std::memcpy(values + lane, &bits, sizeof(bits));
  }
  return load(values);
#endif
}

/// `table`: the panel's multipliers, or what they are times 2^exponent. `scales`: the panel's.
static inline __attribute__((always_inline)) F16 block_scales(const Fp4Panel& panel, const std::uint8_t* scales,
                                                              int64_t block, const float* table, int exponent) {
  if (panel.shared_exponents) return shared_block_scales(scales, block, exponent);
  alignas(64) float values[kPanelRows];
  for (int lane = 0; lane < kPanelRows; ++lane) values[lane] = table[scales[block * kPanelRows + lane]];
  return load(values);
}

}  // namespace nybble::NYBBLE_ISA
