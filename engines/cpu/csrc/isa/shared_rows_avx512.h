#pragma once
// A tile of up to 24 rows times a panel of MXFP4 weights, or of up to 12 times two panels, for superblocks with shared
// exponents: all their sums of a superblock stay in registers, weights go from memory through registers into the
// products, nothing is stored in between. Of two panels each load of activations serves both, and so does what a
// superblock of a tile takes besides its products: few rows, for which that counts, run so.

#include "by_block_avx512.h"
#include "shifted_codes_avx512.h"

namespace nybble::NYBBLE_ISA {

/// One superblock of a tile's panels: codes, scales in the shared form, and how far ahead codes are fetched.
template <int Panels>
struct SharedSuperblock {
  const std::uint8_t* codes[Panels];
  const std::uint8_t* scales[Panels];
  FetchAhead fetch;
  int num_blocks;
};

/// A superblock of a tile's rows: codes [row][Parts][128] and the next superblock's, which are fetched; [row].
struct SharedRowsSlot {
  const std::int8_t* codes;
  const std::int8_t* next_codes;
  const float* scales;
  const std::int32_t* biases;
};

/// The sums of two halves of a superblock hide the products' latency where there are few outputs.
template <int Rows, int Parts, int Panels>
constexpr int shared_split() {
  return Rows * Parts * Panels <= 12 ? 2 : 1;
}

template <int Rows, int Parts, int Panels>
using SharedSums = __m512i[shared_split<Rows, Parts, Panels>()][Rows][Parts][Panels];

/// acc[.][row][part][panel] += products of four columns of each panel and of every row's part.
template <int Rows, int Parts, int Panels>
inline __attribute__((always_inline)) void multiply_columns(const __m512i (&weights)[Panels], const std::int8_t* codes,
                                                            __m512i (&acc)[Rows][Parts][Panels]) {
  NYBBLE_UNROLL for (int i = 0; i < Rows * Parts; ++i) {
    const std::int8_t* x = codes + i * kSuperblockColumns;
    if constexpr (Panels == 1) {
      dot_product(acc[i / Parts][i % Parts][0], weights[0], x);
    } else {
      const __m512i four = four_codes(x);
      NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) dot_product(acc[i / Parts][i % Parts][p], weights[p], four);
    }
  }
}

/// The products of a superblock, biases included.
template <bool Vbmi, int Rows, int Parts, int Panels>
inline __attribute__((always_inline)) void multiply_superblock(const SharedSuperblock<Panels>& weights,
                                                               const SharedRowsSlot& rows,
                                                               SharedSums<Rows, Parts, Panels>& acc) {
  // The next superblock's activations, a line or more for every 64 bytes of weights; fewer rows stay in L1 by
  // themselves.
  constexpr int kLines = Rows * Parts >= 10 ? (Rows * Parts + 7) / 8 : 0;
  constexpr int kSplit = shared_split<Rows, Parts, Panels>();
  const CodeShifter<Vbmi, kSharedBias> shifter;
  BlockShifts<Vbmi, kSharedBias> shifts[Panels];
  for (int p = 0; p < Panels; ++p) shifts[p] = BlockShifts<Vbmi, kSharedBias>(weights.scales[p]);
  NYBBLE_UNROLL for (int i = 0; i < Rows * Panels; ++i) {
    NYBBLE_UNROLL for (int j = 0; j < kSplit * Parts; ++j) {
      acc[j / Parts][i / Panels][j % Parts][i % Panels] = _mm512_setzero_si512();
    }
    acc[0][i / Panels][Parts - 1][i % Panels] = _mm512_set1_epi32(rows.biases[i / Panels]);
  }
  for (int b = 0; b < weights.num_blocks; ++b) {
    BlockShift<Vbmi> shift[Panels];
    for (int p = 0; p < Panels; ++p) shift[p] = shifts[p].next();
    NYBBLE_UNROLL for (int step = 0; step < 4; ++step) {
      const int offset = (b * 4 + step) * 64;
      __m512i raw[Panels], low[Panels], high[Panels];
      NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
        prefetch_ahead(weights.fetch, weights.codes[p] + offset);
        raw[p] = _mm512_load_si512(weights.codes[p] + offset);
        low[p] = shifter.low(raw[p], shift[p]);
      }
      NYBBLE_UNROLL for (int i = 0; i < kLines; ++i) prefetch_line(rows.next_codes + offset * kLines + i * 64);
      const std::int8_t* x = rows.codes + b * 32 + step * 8;
      multiply_columns<Rows, Parts, Panels>(low, x, acc[0]);
      NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) high[p] = shifter.high(raw[p], shift[p]);
      multiply_columns<Rows, Parts, Panels>(high, x + 4, acc[kSplit - 1]);
    }
  }
}

/// sums[panel][row] += one superblock.
template <bool Vbmi, int Rows, int Parts, int Panels>
inline __attribute__((always_inline)) void add_superblock(const SharedSuperblock<Panels>& weights,
                                                          const SharedRowsSlot& rows, F16 (&sums)[Panels][Rows]) {
  constexpr int kSplit = shared_split<Rows, Parts, Panels>();
  SharedSums<Rows, Parts, Panels> acc;
  multiply_superblock<Vbmi, Rows, Parts, Panels>(weights, rows, acc);
  NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
    const F16 quarters = shared_quarters(weights.scales[p]);
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
      __m512i sum = acc[0][r][Parts - 1][p];
      if (kSplit == 2) sum = _mm512_add_epi32(sum, acc[kSplit - 1][r][Parts - 1][p]);
      if (Parts == 2) {
        __m512i high = acc[0][r][0][p];
        if (kSplit == 2) high = _mm512_add_epi32(high, acc[kSplit - 1][r][0][p]);
        sum = _mm512_add_epi32(sum, _mm512_slli_epi32(high, 8));
      }
      sums[p][r] = fma(F16{_mm512_cvtepi32_ps(sum)}, quarters * splat(rows.scales[r]), sums[p][r]);
    }
  }
}

/// The outputs of rows [first_row, first_row + Rows) and of `Panels` panels from `panel` on; two must have all their
/// scales in the shared form.
template <bool Vbmi, int Rows, int Parts, int Panels>
class SharedTile {
 public:
  SharedTile(const IntegerArgs& args, int64_t first_row, int64_t panel)
      : args_(args),
        first_row_(first_row),
        panel_(panel),
        num_superblocks_(count_superblocks(args.weight.num_columns)) {
    for (int p = 0; p < Panels; ++p) sources_[p] = panel_source(args.weight, panel + p, 0);
    clear_sums(&sums_[0][0], Panels * Rows);
  }

  void run() {
    const int scale_bytes = superblock_scale_bytes(32, sources_[0].panel->shared_exponents);
    for (int64_t superblock = 0; superblock < num_superblocks_; ++superblock) {
      add(superblock);
      for (PanelSource& source : sources_) source.advance(scale_bytes);
    }
    for (int p = 0; p < Panels; ++p) store_outputs<Rows, Parts>(args_, first_row_, panel_ + p, sums_[p]);
  }

 private:
  inline __attribute__((always_inline)) void add(int64_t superblock) {
    SharedSuperblock<Panels> weights;
    weights.num_blocks = static_cast<int>(superblock_columns(args_.weight.num_columns, superblock) / 32);
    alignas(kSharedScaleBytes) std::uint8_t own[kSharedScaleBytes];
    for (int p = 0; p < Panels; ++p) {
      weights.codes[p] = sources_[p].codes;
      weights.scales[p] = Panels == 1 ? shared_scales(sources_[p], weights.num_blocks, own) : sources_[p].scales;
    }
    fetch(superblock, weights);
    std::uint32_t left = all_rows(Rows);
    if (weights.scales[0] != nullptr) {
      const int64_t slot = superblock * args_.rows.stride + first_row_;
      const std::int8_t* codes = args_.rows.codes + slot * Parts * kSuperblockColumns;
      const SharedRowsSlot rows{codes, codes + args_.rows.stride * Parts * kSuperblockColumns, args_.rows.scales + slot,
                                args_.rows.biases + slot};
      add_superblock<Vbmi, Rows, Parts, Panels>(weights, rows, sums_);
      left = irregular_rows(args_, first_row_, Rows, superblock);  // they added nothing to the shared product
    }
    if (left == 0) return;
    for (int p = 0; p < Panels; ++p) {
      add_by_block<Parts, 32>(args_, first_row_, left, sources_[p], superblock, weights.num_blocks, sums_[p]);
    }
  }

  /// Fetches scales, and says how far ahead codes are. Two panels are read in turn: what comes next lies further on in
  /// both, or in the two after them.
  void fetch(int64_t superblock, SharedSuperblock<Panels>& weights) const {
    if constexpr (Panels == 1) {
      weights.fetch = args_.reading.fetch;
      prefetch_scales(args_.weight, args_.reading.fetch, sources_[0], superblock);
    } else {
      weights.fetch.far_bytes = ahead(superblock, pair_superblocks(args_.reading.fetch.far_bytes), kSuperblockBytes);
      weights.fetch.near_bytes = ahead(superblock, pair_superblocks(args_.reading.fetch.near_bytes), kSuperblockBytes);
      const int64_t scales = ahead(superblock, kPrefetchSuperblocks, kSharedScaleBytes);
      for (int p = 0; p < Panels; ++p) prefetch_line(sources_[p].scales + scales);
    }
  }

  /// As many bytes of two panels.
  static int64_t pair_superblocks(int64_t num_bytes) {
    return (num_bytes + Panels * kSuperblockBytes - 1) / (Panels * kSuperblockBytes);
  }

  /// From a superblock of so many bytes to that `count` further on.
  int64_t ahead(int64_t superblock, int64_t count, int64_t superblock_bytes) const {
    if (superblock + count < num_superblocks_) return count * superblock_bytes;
    const auto next_panels = static_cast<int64_t>(Panels * args_.weight.panel_bytes);
    return next_panels + (count - num_superblocks_) * superblock_bytes;
  }

  const IntegerArgs& args_;
  int64_t first_row_, panel_, num_superblocks_;
  PanelSource sources_[Panels];
  F16 sums_[Panels][Rows];
};

}  // namespace nybble::NYBBLE_ISA
