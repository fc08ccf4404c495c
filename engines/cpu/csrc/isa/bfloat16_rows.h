#pragma once
// Activations for NVFP4 products on bfloat16 tiles, and why the products have the bits of the integer kernels'.
//
// One tile product sums 32 columns: the even and the odd places of a row in a chain each, both starting at zero, then
// the two chains, then the result into the output's sum (TDPBF16PS in Intel's manual). Even places hold one block of 16
// columns, odd places the next block. Inside a block the scales of both operands are constant, so every sum of a chain
// is an integer below 2^24 times one power of two, exact in whatever order: W4A4
//   |sum| <= 16 * 12 * 12 (doubled codes) * 15 * 15 (mantissas of two E4M3 scales) < 2^19,
// and W4A16, whose activations are integers of 8 significant bits below 2^12 that share a power of two in a block,
//   |sum| <= 16 * 12 * 15 * 4080 < 2^24.
// What is left are the two roundings of the formula at the top of linear_w4a4.cpp: of a run of two blocks, and of the
// output's sum. Nothing comes near float32's subnormal numbers, which tiles flush: the smallest step is 2^-20 (W4A4) or
// 2^-118 (W4A16).
//
// Layout: [ranges of 8 steps][tiles of 16 rows][steps of 32 columns][16 rows][16 pairs]. A tile is 1 KiB in one piece,
// its rows' next step follows, and a range of all rows is one stream: tiles whose ranges lay as far apart as a row is
// long, a power of two, would fall on the same few sets of a cache. Pair k holds column k of the step's two blocks; a
// block past the last counts as zeros.

#include "float_bits.h"
#include "kernels.h"

namespace nybble::NYBBLE_ISA {

constexpr int kRangeSteps = kTileRangeColumns / kTileColumns;
constexpr int64_t kTileElements = kTileRows * kTileColumns;

inline int64_t num_steps(int64_t num_columns) { return (num_columns + kTileColumns - 1) / kTileColumns; }

/// The first tile of a tile of rows in a range of steps; the other steps' follow.
inline std::uint16_t* range_tiles(const Bfloat16Rows& rows, int64_t range, int64_t tile) {
  return rows.tiles + (range * rows.num_tiles + tile) * (kRangeSteps * kTileElements);
}

inline std::uint16_t* tile_row(const Bfloat16Rows& rows, int64_t row, int64_t step) {
  return range_tiles(rows, step / kRangeSteps, row / kTileRows) + step % kRangeSteps * kTileElements +
         row % kTileRows * kTileColumns;
}

/// 16 values as integers of at most 8 significant bits times a power of two: bfloat16 values, and exact multiples of
/// 2^-11 of the largest one's power of two. Off by at most 2^-9 of the value or 2^-12 of the largest.
struct BlockIntegers {
  __m512i integers;  // magnitudes below 2^12
  float unit;        // a power of two; NaN where a value is not finite
  bool moderate;     // no sum of products can overflow
};

inline BlockIntegers block_integers(const float* x) {
  const __m512i bits = _mm512_loadu_si512(x);
  const __m512i magnitudes = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  if (_mm512_reduce_max_epu32(magnitudes) >= 0x7f800000U) {
    return {_mm512_setzero_si512(), bits_to_float(0x7fc00000U), true};
  }
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(magnitudes, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i kept = _mm512_min_epu32(_mm512_and_si512(up, _mm512_set1_epi32(0x7fff0000)),
                                        _mm512_set1_epi32(0x7f7f0000));  // the largest finite bfloat16
  const __m512i rounded = _mm512_or_si512(kept, _mm512_xor_si512(bits, magnitudes));
  std::uint32_t exponent = _mm512_reduce_max_epu32(kept) >> 23;
  if (exponent < 30) exponent = 30;  // below 2^-97 the step stays 2^-108
  const float unit = bits_to_float((exponent - 11) << 23);
  const __m512 inverse = _mm512_set1_ps(bits_to_float((254 - (exponent - 11)) << 23));
  return {_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(rounded), inverse)), unit, exponent < 127 + 90};
}

inline __m512 integer_values(const BlockIntegers& block) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(block.integers), _mm512_set1_ps(block.unit));
}

/// Whether up to 16 scales are what an E4M3 byte stands for: zero, four significant bits in [2^-9, 448], or NaN.
inline bool all_e4m3(const float* scales, int64_t count) {
  const auto valid = static_cast<__mmask16>((1U << count) - 1U);
  const __m512i bits = _mm512_maskz_loadu_epi32(valid, scales);
  const __mmask16 fine = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0xfffff));
  const __mmask16 small = _mm512_cmple_epu32_mask(bits, _mm512_set1_epi32(0x43e00000));
  const __mmask16 large = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(0x3b000000));
  const __mmask16 zero = _mm512_testn_epi32_mask(bits, bits);
  const __m512 values = _mm512_castsi512_ps(bits);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return ((fine & small & large) | zero | nan) == 0xffff;
}

}  // namespace nybble::NYBBLE_ISA
