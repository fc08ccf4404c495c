#pragma once
// MXFP4 superblocks whose blocks share an exponent (integer_rows.h): weight codes shifted to it.
//
// With AVX-512 VBMI one table of 64 bytes turns a code and its block's shift into the shifted code. Without, a table
// of 16 codes is followed by a shift of four bytes at a time, which takes nine instructions for 128 codes instead of
// five. Cascade Lake and Cooper Lake have VNNI and not VBMI, so these sources are compiled without it.

#include "integer_weights_avx512.h"
#include "unroll.h"

namespace nybble::NYBBLE_ISA {

/// Scale bytes [block][16] of a superblock; blocks past the last column as the first one.
inline __m512i superblock_scales(const std::uint8_t* scales, int num_blocks) {
  if (num_blocks == kSharedBlocks) return _mm512_loadu_si512(scales);
  const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  return _mm512_mask_loadu_epi8(first, (1ULL << (num_blocks * 16)) - 1, scales);
}

/// A superblock's scales in the shared form (packed_scales.h): those of its panel, or written into `own`. Null where
/// the exponents of an output differ by more than kMaxShift, or lie too far out.
inline const std::uint8_t* shared_scales(const PanelSource& source, int num_blocks,
                                         std::uint8_t (&own)[kSharedScaleBytes]) {
  if (source.panel->shared_exponents) return source.scales;
  if (!source.panel->power_of_two_scales) return nullptr;
  const __m512i bytes = superblock_scales(source.scales, num_blocks);
  __m512i lowest = _mm512_min_epu8(bytes, _mm512_shuffle_i64x2(bytes, bytes, 0x4e));
  lowest = _mm512_min_epu8(lowest, _mm512_shuffle_i64x2(lowest, lowest, 0xb1));
  const __m512i shifts = _mm512_sub_epi8(bytes, lowest);
  const __m512i above = _mm512_sub_epi8(bytes, _mm512_set1_epi8(kLowestScaleByte));
  const __mmask64 far = _mm512_cmpgt_epu8_mask(shifts, _mm512_set1_epi8(kMaxShift));
  const __mmask64 outside =
      _mm512_cmpgt_epu8_mask(above, _mm512_set1_epi8(static_cast<char>(kHighestScaleByte - kLowestScaleByte)));
  if (!_kortestz_mask64_u8(far, outside)) return nullptr;
  const __m512i placed = _mm512_sllv_epi64(shifts, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
  const __m256i half = _mm256_or_si256(_mm512_castsi512_si256(placed), _mm512_extracti64x4_epi64(placed, 1));
  const __m128i all = _mm_or_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(own), _mm512_castsi512_si128(lowest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(own + kPanelRows), all);
  return own;
}

/// 0.25 * 2^(lowest exponent) of each output.
inline F16 shared_quarters(const std::uint8_t* shared) {
  return quarter_of_exponent(_mm_loadu_si128(reinterpret_cast<const __m128i*>(shared)));
}

/// The lane of each byte: spreads a byte of each output over its four columns.
struct alignas(64) ByteLanes {
  std::uint8_t bytes[64] = {};

  constexpr ByteLanes() {
    for (int i = 0; i < 64; ++i) bytes[i] = static_cast<std::uint8_t>(i / 4);
  }
};

/// How a block's codes are shifted, for its 16 outputs of four bytes each.
template <bool Vbmi>
struct BlockShift {
  __m512i bits;  // the shift in bits 4 and 5 of each byte; the others are not used
};

template <>
struct BlockShift<false> {
  __m512i shift;  // per output
  __m512i add;    // per byte: Bias - (12 << shift)
};

/// The shifts of a superblock's blocks, one after the other. `Bias`: what is added to shifted codes.
template <bool Vbmi, int Bias>
class BlockShifts {
 public:
  BlockShifts() = default;
  explicit BlockShifts(const std::uint8_t* shared) {
    static constexpr ByteLanes kLanes;
    const __m512i each = _mm512_load_si512(kLanes.bytes);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(shared + kPanelRows));
    shifts_ = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), each);
    if constexpr (Vbmi) shifts_ = _mm512_rol_epi32(shifts_, 4);
  }

  BlockShift<Vbmi> next() {
    const __m512i shifts = shifts_;
    shifts_ = _mm512_ror_epi32(shifts, 2);  // four equal bytes: each is rotated
    if constexpr (Vbmi) {
      return {shifts};
    } else {
      const __m512i first_bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000);
      const __m512i shift = _mm512_and_si512(shifts, _mm512_set1_epi32(kMaxShift));
      const __m512i biases = _mm512_sllv_epi32(_mm512_set1_epi32(kBlockBias), shift);
      return {shift, _mm512_shuffle_epi8(_mm512_sub_epi32(_mm512_set1_epi32(Bias), biases), first_bytes)};
    }
  }

 private:
  __m512i shifts_;
};

/// (code << shift) + Bias at place shift * 16 + code.
struct alignas(64) ShiftedCodes {
  std::uint8_t bytes[64];
};

constexpr ShiftedCodes make_shifted_codes(int bias) {
  constexpr int kMagnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  ShiftedCodes table{};
  for (int i = 0; i < 64; ++i) {
    const int magnitude = kMagnitudes[i % 8] << (i / 16);
    table.bytes[i] = static_cast<std::uint8_t>(bias + (i % 16 < 8 ? magnitude : -magnitude));
  }
  return table;
}

/// Both halves of 64 packed bytes as shifted codes plus Bias.
template <bool Vbmi, int Bias>
class CodeShifter {
 public:
  CodeShifter() : nibbles_(_mm512_set1_epi8(15)) {
    static constexpr ShiftedCodes kShifted = make_shifted_codes(Bias);
    table_ = Vbmi ? _mm512_load_si512(kShifted.bytes) : biased_codes();
  }

  __m512i low(__m512i raw, const BlockShift<Vbmi>& block) const {
    if constexpr (Vbmi) {
      constexpr int kSelect = 0xe2;  // (raw & 15) | (bits & ~15)
      return look_up(_mm512_ternarylogic_epi32(raw, nibbles_, block.bits, kSelect), table_);
    } else {
      const __m512i codes = _mm512_shuffle_epi8(table_, _mm512_and_si512(raw, nibbles_));
      return _mm512_add_epi8(_mm512_sllv_epi32(codes, block.shift), block.add);
    }
  }

  __m512i high(__m512i raw, const BlockShift<Vbmi>& block) const { return low(_mm512_srli_epi16(raw, 4), block); }

 private:
  __m512i table_, nibbles_;
};

}  // namespace nybble::NYBBLE_ISA
