#pragma once
// A tile of up to 24 rows times a panel of MXFP4 weights, for superblocks with shared exponents: all sums of a
// superblock stay in registers, weights go from memory through registers into the products, nothing is stored in
// between.

#include "by_block_avx512.h"
#include "shifted_codes_avx512.h"

namespace nybble::NYBBLE_ISA {

/// A superblock of a tile's rows: codes [row][Parts][128] and the next superblock's, which are fetched; [row].
struct SharedRowsSlot {
  const std::int8_t* codes;
  const std::int8_t* next_codes;
  const float* scales;
  const std::int32_t* biases;
};

/// The sums of two halves of a superblock hide the products' latency where there are few outputs.
template <int Rows, int Parts>
constexpr int shared_split() {
  return Rows * Parts <= 12 ? 2 : 1;
}

template <int Rows, int Parts>
using SharedSums = __m512i[shared_split<Rows, Parts>()][Rows][Parts];

/// acc[row][part] += products of four columns.
template <int Rows, int Parts>
inline __attribute__((always_inline)) void multiply_columns(__m512i weights, const std::int8_t* codes,
                                                            __m512i (&acc)[Rows][Parts]) {
  NYBBLE_UNROLL for (int i = 0; i < Rows * Parts; ++i) {
    dot_product(acc[i / Parts][i % Parts], weights, codes + i * kSuperblockColumns);
  }
}

/// The products of a superblock of codes with scales in the shared form, biases included.
template <bool Vbmi, int Rows, int Parts>
inline __attribute__((always_inline)) void multiply_superblock(const std::uint8_t* packed, const std::uint8_t* shared,
                                                               int num_blocks, const FetchAhead& fetch,
                                                               const SharedRowsSlot& rows,
                                                               SharedSums<Rows, Parts>& acc) {
  // The next superblock's activations, a line or more for every 64 bytes of weights; fewer rows stay in L1 by
  // themselves.
  constexpr int kLines = Rows * Parts >= 10 ? (Rows * Parts + 7) / 8 : 0;
  constexpr int kSplit = shared_split<Rows, Parts>();
  const CodeShifter<Vbmi, kSharedBias> shifter;
  BlockShifts<Vbmi, kSharedBias> shifts(shared);
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    NYBBLE_UNROLL for (int i = 0; i < kSplit * Parts; ++i) acc[i / Parts][r][i % Parts] = _mm512_setzero_si512();
    acc[0][r][Parts - 1] = _mm512_set1_epi32(rows.biases[r]);
  }
  for (int b = 0; b < num_blocks; ++b) {
    const BlockShift<Vbmi> shift = shifts.next();
    NYBBLE_UNROLL for (int step = 0; step < 4; ++step) {
      const int offset = (b * 4 + step) * 64;
      prefetch_ahead(fetch, packed + offset);
      NYBBLE_UNROLL for (int i = 0; i < kLines; ++i) prefetch_line(rows.next_codes + offset * kLines + i * 64);
      const __m512i raw = _mm512_load_si512(packed + offset);
      const std::int8_t* x = rows.codes + b * 32 + step * 8;
      multiply_columns<Rows, Parts>(shifter.low(raw, shift), x, acc[0]);
      multiply_columns<Rows, Parts>(shifter.high(raw, shift), x + 4, acc[kSplit - 1]);
    }
  }
}

/// sums[row] += one superblock's `acc`.
template <int Rows, int Parts>
inline __attribute__((always_inline)) void add_scaled_sums(const SharedSums<Rows, Parts>& acc,
                                                           const std::uint8_t* shared, const float* scales,
                                                           F16 (&sums)[Rows]) {
  constexpr int kSplit = shared_split<Rows, Parts>();
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

/// The sums of rows [first_row, first_row + Rows) and of a panel.
template <bool Vbmi, int Rows, int Parts>
class SharedTile {
 public:
  SharedTile(const IntegerArgs& args, int64_t first_row, int64_t panel, F16 (&sums)[Rows])
      : args_(args), first_row_(first_row), source_(panel_source(args.weight, panel, 0)), sums_(sums) {
    clear_sums(sums, Rows);
  }

  void run() {
    const int scale_bytes = superblock_scale_bytes(32, source_.panel->shared_exponents);
    const int64_t num_superblocks = count_superblocks(args_.weight.num_columns);
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      add(superblock);
      source_.advance(scale_bytes);
    }
  }

 private:
  inline __attribute__((always_inline)) void add(int64_t superblock) {
    const int num_blocks = static_cast<int>(superblock_columns(args_.weight.num_columns, superblock) / 32);
    alignas(kSharedScaleBytes) std::uint8_t own[kSharedScaleBytes];
    const std::uint8_t* shared = shared_scales(source_, num_blocks, own);
    prefetch_scales(args_.weight, args_.reading.fetch, source_, superblock);
    std::uint32_t left = all_rows(Rows);
    if (shared != nullptr) {
      const int64_t slot = superblock * args_.rows.stride + first_row_;
      const std::int8_t* codes = args_.rows.codes + slot * Parts * kSuperblockColumns;
      const SharedRowsSlot rows{codes, codes + args_.rows.stride * Parts * kSuperblockColumns, args_.rows.scales + slot,
                                args_.rows.biases + slot};
      SharedSums<Rows, Parts> acc;
      multiply_superblock<Vbmi, Rows, Parts>(source_.codes, shared, num_blocks, args_.reading.fetch, rows, acc);
      add_scaled_sums<Rows, Parts>(acc, shared, rows.scales, sums_);
      left = irregular_rows(args_, first_row_, Rows, superblock);  // they added nothing to the shared product
    }
    if (left != 0) {
      add_by_block<Parts, 32>(args_, first_row_, left, source_, superblock, num_blocks, sums_);
    }
  }

  const IntegerArgs& args_;
  int64_t first_row_;
  PanelSource source_;
  F16 (&sums_)[Rows];
};

}  // namespace nybble::NYBBLE_ISA
