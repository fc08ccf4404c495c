#pragma once
// A tile of up to 24 rows times one panel of MXFP4 weights, for superblocks with shared exponents: all its sums stay in
// registers, weights go from memory through registers into the products, nothing is stored in between.

#include "by_block_avx512.h"
#include "shifted_codes_avx512.h"

namespace nybble::NYBBLE_ISA {

/// sums[row] += one superblock of `Rows` rows. `codes`: [row][Parts][128], and the next superblock's, which are
/// fetched; `scales` and `biases`: [row].
template <bool Vbmi, int Rows, int Parts>
__attribute__((noinline)) void add_shared_rows(const std::uint8_t* packed, const SharedSuperblock<Vbmi>& weights,
                                               int num_blocks, const std::int8_t* codes, const std::int8_t* next_codes,
                                               const float* scales, const std::int32_t* biases, F16* sums) {
  // Two sums an output hide the products' latency where there are few outputs.
  constexpr int kSplit = Rows * Parts <= 12 ? 2 : 1;
  // The next superblock's activations, a line or more for every 64 bytes of weights; fewer rows stay in L1 by
  // themselves.
  constexpr int kLines = Rows * Parts >= 10 ? (Rows * Parts + 7) / 8 : 0;
  const CodeShifter<Vbmi, kSharedBias> shifter;
  __m512i acc[kSplit][Rows][Parts];
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    NYBBLE_UNROLL for (int i = 0; i < kSplit * Parts; ++i) acc[i / Parts][r][i % Parts] = _mm512_setzero_si512();
    acc[0][r][Parts - 1] = _mm512_set1_epi32(biases[r]);
  }
  for (int b = 0; b < num_blocks; ++b) {
    const BlockShift<Vbmi> shift = weights.blocks[b];
    NYBBLE_UNROLL for (int step = 0; step < 4; ++step) {
      const int offset = (b * 4 + step) * 64;
      prefetch_far(packed + offset);
      prefetch_near(packed + offset);
      NYBBLE_UNROLL for (int i = 0; i < kLines; ++i) { prefetch_line(next_codes + offset * kLines + i * 64); }
      const __m512i raw = _mm512_load_si512(packed + offset);
      const __m512i low = shifter.low(raw, shift);
      const __m512i high = shifter.high(raw, shift);
      NYBBLE_UNROLL for (int i = 0; i < Rows * Parts; ++i) {
        const std::int8_t* x = codes + i * kSuperblockColumns + b * 32 + step * 8;
        dot_product(acc[0][i / Parts][i % Parts], low, x);
        dot_product(acc[kSplit - 1][i / Parts][i % Parts], high, x + 4);
      }
    }
  }
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    __m512i sum = acc[0][r][Parts - 1];
    if (kSplit == 2) sum = _mm512_add_epi32(sum, acc[kSplit - 1][r][Parts - 1]);
    if (Parts == 2) {
      __m512i high = acc[0][r][0];
      if (kSplit == 2) high = _mm512_add_epi32(high, acc[kSplit - 1][r][0]);
      sum = _mm512_add_epi32(sum, _mm512_slli_epi32(high, 8));
    }
    sums[r] = fma(F16{_mm512_cvtepi32_ps(sum)}, weights.quarter * splat(scales[r]), sums[r]);
  }
}

/// Rows [first_row, first_row + Rows).
template <bool Vbmi, int Rows, int Parts>
class SharedRows {
 public:
  SharedRows(const IntegerArgs& args, int64_t first_row) : args_(args), first_row_(first_row) {}

  void run_panel(int64_t panel) {
    const Fp4View& weight = args_.weight;
    F16 sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = splat(0.0F);
    PanelSource source = panel_source(weight, panel, 0);
    const int64_t num_superblocks = (weight.num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      const int num_blocks = static_cast<int>(superblock_columns(weight.num_columns, superblock) / 32);
      const int64_t slot = superblock * args_.num_rows + first_row_;
      SharedSuperblock<Vbmi> shared;
      prefetch_scales(weight, source, superblock);
      std::uint32_t left = all_rows(Rows);
      if (share_superblock<Vbmi, kSharedBias>(source, num_blocks, shared)) {
        const std::int8_t* codes = args_.rows.codes + slot * Parts * kSuperblockColumns;
        add_shared_rows<Vbmi, Rows, Parts>(source.codes, shared, num_blocks, codes,
                                           codes + args_.num_rows * Parts * kSuperblockColumns,
                                           args_.rows.scales + slot, args_.rows.biases + slot, sums);
        left = irregular_rows(args_, first_row_, Rows, superblock);  // they added nothing to the shared product
      }
      if (left != 0) add_by_block<Parts, 32>(args_, first_row_, left, source, superblock, num_blocks, sums);
      source.codes += kSuperblockColumns * 8;
      source.scales += kSuperblockColumns / 32 * 16;
    }
    store_outputs<Rows, Parts>(args_, first_row_, panel, sums);
  }

 private:
  const IntegerArgs& args_;
  int64_t first_row_;
};

}  // namespace nybble::NYBBLE_ISA
