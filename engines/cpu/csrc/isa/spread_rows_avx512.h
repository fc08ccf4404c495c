#pragma once
// Rows of activations whose exponents in a superblock lie 4 to 7 apart, gathered for one product more on tiles: each in
// two parts, as a row of W4A16 is (integer_rows.h).

#include "shared_exponents_avx512.h"

namespace nybble::NYBBLE_ISA {

/// The row's exponents in a superblock are too far apart to be shared, and near enough for two parts.
inline bool is_spread(const IntegerRows& rows, int64_t slot) {
  return rows.regular[slot] == 0 && rows.scales[slot] > 0;
}

/// Up to a tile of rows of one superblock.
class SpreadRows {
 public:
  static constexpr int kMaxRows = 16;
  static constexpr int64_t kRowBytes = 2 * kSuperblockColumns;

  int count() const { return count_; }
  int64_t row(int i) const { return rows_[i]; }
  const std::int8_t* first_parts() const { return parts_[0][0]; }
  const std::int8_t* second_parts() const { return parts_[0][1]; }
  void clear() { count_ = 0; }

  /// There must be room for it.
  void add(const IntegerArgs& args, int64_t row, int64_t superblock, int num_blocks) {
    const std::int8_t* codes = args.block_codes + row * args.weight.num_columns + superblock * kSuperblockColumns;
    const std::uint64_t lanes = (1ULL << (num_blocks * 8)) - 1;  // of four codes
    const __m512i first = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes), codes);
    const __m512i second = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes >> 16), codes + 64);
    const int64_t slot = superblock * args.rows.stride + row;
    const float* scales = args.rows.block_scales + slot * kSharedBlocks;
    const __m128i bytes = _mm_srli_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)), 23);
    const __m128i lowest = _mm_set1_epi32(static_cast<int>(float_to_bits(args.rows.scales[slot]) >> 23));
    const __m128i above = _mm_sub_epi32(bytes, lowest);
    // Blocks of zeros may lie anywhere: shifted by whatever it is, they stay zeros.
    const __mmask8 high = _mm_cmpgt_epi32_mask(above, _mm_set1_epi32(kMaxShift));
    const __m128i shifts = _mm_mask_sub_epi32(above, high, above, _mm_set1_epi32(kPartShift));
    const __m512i shifted[2] = {shift_words<0>(first, shifts), shift_words<1>(second, shifts)};
    const __m128i kept = kept_bits(shifts);
    store(shifted, _mm_maskz_mov_epi32(high, kept), parts_[count_][0]);
    store(shifted, _mm_mask_mov_epi32(kept, high, _mm_setzero_si128()), parts_[count_][1]);
    rows_[count_++] = row;
  }

 private:
  static void store(const __m512i (&shifted)[2], __m128i kept, std::int8_t* part) {
    _mm512_store_si512(part, _mm512_and_si512(shifted[0], beside_codes<0>(kept)));
    _mm512_store_si512(part + 64, _mm512_and_si512(shifted[1], beside_codes<1>(kept)));
  }

  int count_ = 0;
  int64_t rows_[kMaxRows];
  alignas(64) std::int8_t parts_[kMaxRows][2][kSuperblockColumns] = {};
};

}  // namespace nybble::NYBBLE_ISA
