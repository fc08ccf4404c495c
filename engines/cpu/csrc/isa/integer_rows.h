#pragma once
// Superblocks of 128 columns, and when their blocks may share one exponent.
//
// Inside a superblock the blocks' contributions are summed first, then the superblock's sum is added to the output's:
//   part = part + float(sum_b) * min((0.25f * w_scale) * a_scale, FLT_MAX)    for its blocks b in ascending order
//   acc  = acc + part
// With scales that are powers of two (MXFP4), E2M1 codes times two need 5 of an int8's 8 bits. Where the weight's block
// exponents inside the superblock differ by at most 3, and the activation's too, codes shifted left by the difference
// share the lowest exponents ew and ea, and one integer dot product S runs over all 128 columns:
//   |S| <= 128 * (12 * 8) * (12 * 8) < 2^21,    part = S * 2^(ew + ea - 2) exactly,
// because every partial sum of the formula above is an integer below 2^24 times that power of two, which float32 holds
// as long as nothing under- or overflows: exponents within [-kMaxExponent, kMaxExponent] see to that. So
// acc = fma(S, 2^(ew + ea - 2), acc) has the bits of the formula.
//
// Where the activation's exponents differ by up to 7, S = S0 + 16 * S1 of two products: blocks up to 3 above the lowest
// in one, the others, shifted by 4 less, in the other. No partial sum reaches 2^24 either: a block adds at most
// 32 * 12 * 12 * 2^(3 + 7) and the activation's lowest one 2^3 instead, and three of the former are 0.85 * 2^24.

#include "../packed_scales.h"
#include "kernels.h"

namespace nybble::NYBBLE_ISA {

constexpr int kSharedBias = 96;  // 12 << kMaxShift: makes shifted weight codes unsigned, [0, 192]
constexpr int kBlockBias = 12;   // makes doubled weight codes unsigned, [0, 24]

constexpr int kPartShift = 4;                       // of the second of two products
constexpr int kMaxSpread = kMaxShift + kPartShift;  // of an activation's exponents

constexpr float kOutOfReach = -1.0F;  // for the scale of a row whose exponents two products do not reach

constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: its bits plus n, as a float, are kMagic + n for |n| <= 2^22
constexpr std::int32_t kMagicBits = 0x4b400000;

inline int64_t superblock_columns(int64_t num_columns, int64_t superblock) {
  return min64(kSuperblockColumns, num_columns - superblock * kSuperblockColumns);
}

#if defined(NYBBLE_ISA_AVX512)
/// Integers of at most 127 * 256 + 127 in magnitude as 256 * high + low.
inline void split_integers(__m512i integers, std::int8_t* high, std::int8_t* low) {
  const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(h));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(integers));
}
#endif

}  // namespace nybble::NYBBLE_ISA
