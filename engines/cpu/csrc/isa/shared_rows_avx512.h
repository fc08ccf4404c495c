#pragma once
// A tile of up to 24 rows times one panel of MXFP4 weights, for superblocks with shared exponents: all its sums stay in
// registers, weights go from memory through registers into the products, nothing is stored in between.

#include "shifted_codes_avx512.h"
#include "tile_panel_avx512.h"

namespace nybble::NYBBLE_ISA {

/// sums[row] += one superblock of `Rows` rows. `shared`: the weights' scales in the shared form. `codes`:
/// [row][Parts][128], and the next superblock's, which are fetched; `scales` and `biases`: [row].
template <bool Vbmi, int Rows, int Parts>
__attribute__((noinline)) void add_shared_rows(const std::uint8_t* packed, const std::uint8_t* shared, int num_blocks,
                                               const std::int8_t* codes, const std::int8_t* next_codes,
                                               const float* scales, const std::int32_t* biases, F16* sums) {
  // Two sums an output hide the products' latency where there are few outputs.
  constexpr int kSplit = Rows * Parts <= 12 ? 2 : 1;
  // The next superblock's activations, a line or more for every 64 bytes of weights; fewer rows stay in L1 by
  // themselves.
  constexpr int kLines = Rows * Parts >= 10 ? (Rows * Parts + 7) / 8 : 0;
  const CodeShifter<Vbmi, kSharedBias> shifter;
  BlockShifts<Vbmi, kSharedBias> shifts(shared);
  __m512i acc[kSplit][Rows][Parts];
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    NYBBLE_UNROLL for (int i = 0; i < kSplit * Parts; ++i) acc[i / Parts][r][i % Parts] = _mm512_setzero_si512();
    acc[0][r][Parts - 1] = _mm512_set1_epi32(biases[r]);
  }
  for (int b = 0; b < num_blocks; ++b) {
    const BlockShift<Vbmi> shift = shifts.next();
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
  const F16 quarters = shared_quarters(shared);
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    __m512i sum = acc[0][r][Parts - 1];
    if (kSplit == 2) sum = _mm512_add_epi32(sum, acc[kSplit - 1][r][Parts - 1]);
    if (Parts == 2) {
      __m512i high = acc[0][r][0];
      if (kSplit == 2) high = _mm512_add_epi32(high, acc[kSplit - 1][r][0]);
      sum = _mm512_add_epi32(sum, _mm512_slli_epi32(high, 8));
    }
    sums[r] = fma(F16{_mm512_cvtepi32_ps(sum)}, quarters * splat(scales[r]), sums[r]);
  }
}

template <bool Vbmi, int Rows, int Parts>
struct SharedRows {
  static void run(const IntegerArgs& args, int64_t first_row, int64_t panel) {
    run_tile_panel<Rows, Parts, 32>(args, first_row, panel, [&](const TileSuperblock& tile, F16* sums) {
      alignas(kSharedScaleBytes) std::uint8_t own[kSharedScaleBytes];
      const std::uint8_t* shared = shared_scales(tile.source, tile.num_blocks, own);
      if (shared == nullptr) return all_rows(Rows);
      add_shared_rows<Vbmi, Rows, Parts>(tile.source.codes, shared, tile.num_blocks, tile.codes, tile.next_codes,
                                         args.rows.scales + tile.slot, args.rows.biases + tile.slot, sums);
      return irregular_rows(args, first_row, Rows, tile.superblock);  // they added nothing to the shared product
    });
  }
};

}  // namespace nybble::NYBBLE_ISA
