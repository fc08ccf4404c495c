#pragma once
// FP4 weights times integer activations: W4A4 (codes) and W4A16 (16-bit integers in two parts), for any
// number of rows. The arithmetic is at the top of linear_w4a4.cpp and integer_rows.h.
//
// A group of one or two panels (16 or 32 outputs) is unpacked to bytes one superblock at a time, into L1; all rows of a
// block of rows then run over it in register tiles. The running sums of the block of rows stay in L1 or L2.

#include "integer_weights_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kVectors = kSuperblockColumns / 4;     // of 4 columns x 16 outputs
constexpr int kMaxBlocks = kSuperblockColumns / 16;  // in a superblock
constexpr int kPanelGroup = 2;
constexpr int64_t kMaxBlockRows = 192;         // a multiple of both steps in rows_per_block
constexpr int64_t kRowBlockBytes = 768 << 10;  // activation codes of a block of rows: part of L2

/// One superblock of a group of panels, unpacked: biased codes as unsigned bytes, and the scales' quarters.
template <int Panels>
struct Unpacked {
  alignas(64) std::uint8_t codes[kVectors][Panels][64];
  alignas(64) float quarters[kMaxBlocks][Panels][16];
};

/// ((12 + code) << shift) + (Bias - (12 << shift)) = Bias + (code << shift), the shift per output and block.
template <int Bias, int Panels>
void unpack_shared(const PanelSource& source, int num_blocks, __m128i lowest, int p, Unpacked<Panels>& out) {
  const __m512i table = biased_codes();
  const __m512i first_bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000);
  for (int b = 0; b < num_blocks; ++b) {
    const __m512i shift = lane_shifts(source, b, lowest);
    const __m512i bias =
        _mm512_sub_epi32(_mm512_set1_epi32(Bias), _mm512_sllv_epi32(_mm512_set1_epi32(kBlockBias), shift));
    const __m512i add = _mm512_shuffle_epi8(bias, first_bytes);
    for (int step = 0; step < 4; ++step) {
      const std::uint8_t* codes = source.codes + (b * 4 + step) * 64;
      const __m512i raw = _mm512_load_si512(codes);
      const __m512i low = _mm512_shuffle_epi8(table, low_nibbles(raw));
      const __m512i high = _mm512_shuffle_epi8(table, low_nibbles(_mm512_srli_epi16(raw, 4)));
      std::uint8_t (*target)[Panels][64] = out.codes + (b * 4 + step) * 2;
      _mm512_store_si512(target[0][p], _mm512_add_epi8(_mm512_sllv_epi32(low, shift), add));
      _mm512_store_si512(target[1][p], _mm512_add_epi8(_mm512_sllv_epi32(high, shift), add));
    }
  }
  store(out.quarters[0][p], quarter_of_exponent(lowest));
}

template <int Panels, int Group>
float unpack_blocks(const PanelSource& source, int num_blocks, int p, Unpacked<Panels>& out) {
  const __m512i table = biased_codes();
  __m512 largest = _mm512_setzero_ps();
  for (int b = 0; b < num_blocks; ++b) {
    for (int step = 0; step < Group / 8; ++step) {
      const std::uint8_t* codes = source.codes + (b * (Group / 8) + step) * 64;
      const __m512i raw = _mm512_load_si512(codes);
      std::uint8_t (*target)[Panels][64] = out.codes + (b * (Group / 8) + step) * 2;
      _mm512_store_si512(target[0][p], _mm512_shuffle_epi8(table, low_nibbles(raw)));
      _mm512_store_si512(target[1][p], _mm512_shuffle_epi8(table, low_nibbles(_mm512_srli_epi16(raw, 4))));
    }
    const F16 quarter = quarter_scales(source, b);
    store(out.quarters[b][p], quarter);
    largest = _mm512_max_ps(largest, quarter.v);
  }
  return _mm512_reduce_max_ps(largest);
}

/// Packed weights that a product fetches while it multiplies, a line per vector: unpacking alone, with nothing to do
/// meanwhile, would wait for memory. Once they are fetched, lines that are in L1 take their place.
struct Ahead {
  const std::uint8_t* panels[2];  // one superblock's codes each
};

// Loops over a register tile are unrolled by pragma, and a tile is a function by itself: in a large caller GCC 12 may
// give up and keep the sums in memory, at half the speed. What is inlined where was measured.
#if defined(__SANITIZE_ADDRESS__)  // compiles for many minutes otherwise
#define NYBBLE_UNROLL
#define NYBBLE_INLINE inline
#else
#define NYBBLE_UNROLL _Pragma("GCC unroll 16")
#define NYBBLE_INLINE __attribute__((always_inline)) inline
#endif

/// Rows x Panels outputs over the vectors [begin, end) of a superblock: sums[row][panel] = bias + dot product.
/// Split sums keep the instruction's latency hidden when there are few outputs.
template <int Rows, int Panels, int Parts>
NYBBLE_INLINE void multiply(const Unpacked<Panels>& weights, const std::int8_t* const* codes, int begin, int end,
                            const std::int32_t* biases, const Ahead& ahead, __m512i (&sums)[Rows][Panels]) {
  constexpr int kSplit = Rows * Panels * Parts <= 6 ? 2 : 1;
  __m512i acc[kSplit][Parts][Rows][Panels];
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
      NYBBLE_UNROLL for (int i = 0; i < kSplit * Parts; ++i) acc[i / Parts][i % Parts][r][p] = _mm512_setzero_si512();
      acc[0][Parts - 1][r][p] = _mm512_set1_epi32(biases[r]);
    }
  }
  // Small tiles run through the loop so fast that its end, mispredicted, counts; larger ones have no registers to
  // spare.
  constexpr int kStep = Rows * Panels * Parts <= 16 ? 4 : kSplit;
  for (int v = begin; v < end; v += kStep) {
    NYBBLE_UNROLL for (int s = 0; s < kStep; ++s) {
      __builtin_prefetch(ahead.panels[(v + s) % 2] + (v + s) / 2 * 64, 0, 2);
      __m512i w[Panels];
      NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) w[p] = _mm512_load_si512(weights.codes[v + s][p]);
      NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
        NYBBLE_UNROLL for (int part = 0; part < Parts; ++part) {
          const __m512i x = four_columns(codes[r] + part * kSuperblockColumns + (v + s) * 4);
          NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) dot_product(acc[s % kSplit][part][r][p], w[p], x);
        }
      }
    }
  }
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
      __m512i sum = acc[0][Parts - 1][r][p];
      if (kSplit == 2) sum = _mm512_add_epi32(sum, acc[kSplit - 1][Parts - 1][r][p]);
      if (Parts == 2) {
        __m512i high = acc[0][0][r][p];
        if (kSplit == 2) high = _mm512_add_epi32(high, acc[kSplit - 1][0][r][p]);
        sum = _mm512_add_epi32(sum, _mm512_slli_epi32(high, 8));
      }
      sums[r][p] = sum;
    }
  }
}

/// What a tile reads of its rows: the codes at the superblock (both parts), scales and biases.
template <int Rows>
struct TileRows {
  const std::int8_t* codes[Rows];
  float scales[Rows];
  std::int32_t biases[Rows];
  float* out[Rows];  // running sums [Panels][16]
};

template <int Rows, int Panels, int Parts>
NYBBLE_INLINE void shared_tile(const Unpacked<Panels>& weights, int num_blocks, const TileRows<Rows>& rows,
                               const Ahead& ahead) {
  __m512i sums[Rows][Panels];
  multiply<Rows, Panels, Parts>(weights, rows.codes, 0, num_blocks * 8, rows.biases, ahead, sums);
  NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
    const F16 quarter = load(weights.quarters[0][p]);
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
      float* out = rows.out[r] + p * 16;
      store(out, fma(F16{_mm512_cvtepi32_ps(sums[r][p])}, quarter * splat(rows.scales[r]), load(out)));
    }
  }
}

/// Block by block. `scales` and `biases` of row r and block b: at [r][b] behind the given pointers.
template <int Rows, int Panels, int Parts, int Group, BlockScaling Scaling>
__attribute__((noinline)) void block_tile(const Unpacked<Panels>& weights, int num_blocks, const TileRows<Rows>& rows,
                                          const float* const (&scales)[Rows], int64_t scale_step,
                                          const std::int32_t* const (&biases)[Rows], const Ahead& ahead) {
  F16 run_sums[Rows][Panels];
  for (int b = 0; b < num_blocks; ++b) {
    std::int32_t block_biases[Rows];
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) block_biases[r] = biases[r][b];
    __m512i sums[Rows][Panels];
    multiply<Rows, Panels, Parts>(weights, rows.codes, b * (Group / 4), (b + 1) * (Group / 4), block_biases, ahead,
                                  sums);
    const bool first = b % summed_blocks(Group) == 0;
    const bool last = b % summed_blocks(Group) == summed_blocks(Group) - 1 || b == num_blocks - 1;
    NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
      const F16 quarter = load(weights.quarters[b][p]);
      NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
        const F16 product = quarter * splat(scales[r][b * scale_step]);
        run_sums[r][p] = add_block<Scaling>(F16{_mm512_cvtepi32_ps(sums[r][p])}, product, run_sums[r][p], first);
      }
    }
    if (!last) continue;
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
      NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
        store(rows.out[r] + p * 16, load(rows.out[r] + p * 16) + run_sums[r][p]);
      }
    }
  }
}

/// How a superblock with shared exponents is multiplied: in vector registers.
struct VectorTiles {
  static constexpr bool kTiles = false;
};

/// `Tiles`: VectorTiles, or tiles of 16 rows x 64 bytes as in amx_tiles.h.
template <class Tiles, int Panels, int Parts, int Group>
class PanelGroup {
 public:
  PanelGroup(const IntegerArgs& args, int64_t first_panel) : args_(args), first_panel_(first_panel) {}

  void run(int64_t row_begin, int64_t row_end) {
    row_begin_ = row_begin;
    row_end_ = row_end;
    for (int64_t i = 0; i < (row_end - row_begin) * Panels; ++i) store(sums_ + i * 16, splat(0.0F));
    const int64_t num_columns = args_.weight.num_columns;
    for (int64_t k = 0; k < num_columns; k += kSuperblockColumns) run_superblock(k / kSuperblockColumns);
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int p = 0; p < Panels; ++p) {
        const Fp4Panel& panel = args_.weight.panels[first_panel_ + p];
        const F16 sum = load(sums_ + ((row - row_begin) * Panels + p) * 16);
        store_partial(args_.out + row * args_.weight.num_rows + panel.first_output,
                      sum * output_factor<Parts>(args_.weight, first_panel_ + p), panel.num_lanes);
      }
    }
  }

 private:
  /// The codes of a superblock further on, in these panels or in the next group's.
  const std::uint8_t* codes_ahead(int64_t superblock, int p) const {
    const Fp4View& weight = args_.weight;
    const int64_t num_superblocks = (weight.num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
    const int64_t next = superblock + kPrefetchSuperblocks;
    const int64_t panel = first_panel_ + p + next / num_superblocks * Panels;
    // An address for prefetching only: it may lie past the last panel.
    const auto base =
        reinterpret_cast<std::uintptr_t>(weight.data) + static_cast<std::size_t>(panel) * weight.panel_bytes;
    return reinterpret_cast<const std::uint8_t*>(base) + next % num_superblocks * (kSuperblockColumns * 8);
  }

  Ahead take_ahead() {
    const Ahead ahead = ahead_;
    ahead_ = {unpacked_.codes[0][0], unpacked_.codes[0][0]};
    return ahead;
  }

  void run_superblock(int64_t superblock) {
    superblock_ = superblock;
    ahead_ = {codes_ahead(superblock, 0), codes_ahead(superblock, Panels - 1)};
    num_blocks_ = static_cast<int>(superblock_columns(args_.weight.num_columns, superblock) / Group);
    PanelSource sources[Panels];
    bool shared = Group == 32;
    __m128i lowest[Panels];
    for (int p = 0; p < Panels; ++p) {
      sources[p] = panel_source(args_.weight, first_panel_ + p, superblock);
      prefetch_scales(args_.weight, sources[p], superblock);
      shared = shared && share_exponent(sources[p], num_blocks_, &lowest[p]);
    }
    if (shared) {
      constexpr int kBias = Tiles::kTiles ? 0 : kSharedBias;  // tiles multiply signed bytes
      for (int p = 0; p < Panels; ++p) unpack_shared<kBias>(sources[p], num_blocks_, lowest[p], p, unpacked_);
      if constexpr (Tiles::kTiles) {
        for (int64_t row = row_begin_; row < row_end_; row += 32 / Parts) run_tiles(row);
      } else {
        for_tiles<12 / Parts, Panels == kPanelGroup>(row_begin_, row_end_,
                                                     [&]<int Rows>(int64_t row) { run_shared<Rows>(row); });
      }
      if (!args_.all_regular) run_irregular_rows(sources);
      return;
    }
    unpack_all_blocks(sources);
    constexpr bool kFine = Panels == kPanelGroup && Group == 16;
    for_tiles<6 / Parts, kFine>(row_begin_, row_end_, [&]<int Rows>(int64_t row) { run_blocks<Rows>(row); });
  }

  /// Tiles of at most MaxRows rows, of equal size: one of a single row would wait for its own sums. Where it is not
  /// worth the code, tiles have MaxRows, half or a quarter of it.
  template <int MaxRows, bool Fine, typename Function>
  static void for_tiles(int64_t row, int64_t end, const Function& function) {
    while (row < end) {
      const int64_t num_tiles = (end - row + MaxRows - 1) / MaxRows;
      row += run_tile<MaxRows, Fine>((end - row + num_tiles - 1) / num_tiles, row, function);
    }
  }

  template <int Rows, bool Fine, typename Function>
  static int64_t run_tile(int64_t num_rows, int64_t row, const Function& function) {
    if constexpr (Rows > 1) {
      if (num_rows < Rows) return run_tile<Fine ? Rows - 1 : Rows / 2, Fine>(num_rows, row, function);
    }
    function.template operator()<Rows>(row);
    return Rows;
  }

  float* sums(int64_t row) { return sums_ + (row - row_begin_) * Panels * 16; }

  template <int Rows>
  __attribute__((noinline)) void run_shared(int64_t row) {
    TileRows<Rows> tile;
    const int64_t slot = superblock_ * args_.num_rows + row;
    for (int r = 0; r < Rows; ++r) {
      tile.codes[r] = args_.rows.codes + (slot + r) * Parts * kSuperblockColumns;
      tile.scales[r] = args_.rows.scales[slot + r];
      tile.biases[r] = args_.rows.biases[slot + r];
      tile.out[r] = sums(row + r);
    }
    shared_tile<Rows, Panels, Parts>(unpacked_, num_blocks_, tile, take_ahead());
  }

  /// 32 rows (W4A4) or 16 rows in two parts: two tiles of activations times one or two of weights. Rows past the end
  /// are multiplied too (there is room for them) and left out.
  void run_tiles(int64_t row) {
    const int64_t slot = superblock_ * args_.num_rows + row;
    const std::int8_t* first = args_.rows.codes + slot * Parts * kSuperblockColumns;
    const std::int8_t* second = first + (Parts == 2 ? 1 : 16) * kSuperblockColumns;
    constexpr int64_t kRowBytes = Parts * kSuperblockColumns;
    Tiles::zero();
    for (int k = 0; k < num_blocks_ * Group; k += 64) {  // columns past the last are zeros in the activations
      Tiles::template multiply<Panels>(first + k, second + k, kRowBytes, unpacked_.codes[k / 4][0], Panels * 64);
    }
    Tiles::template store<Panels>(products_);
    const int64_t rows = min64(32 / Parts, row_end_ - row);
    for (int p = 0; p < Panels; ++p) {
      const F16 quarter = load(unpacked_.quarters[0][p]);
      for (int64_t r = 0; r < rows; ++r) {
        __m512i sum = _mm512_load_si512(products_[r / 16 * 2 + p][r % 16]);
        if (Parts == 2) {
          sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), _mm512_load_si512(products_[2 + p][r]));
        }
        float* out = sums(row + r) + p * 16;
        const F16 scale = quarter * splat(args_.rows.scales[slot + r]);
        nybble::NYBBLE_ISA::store(out, fma(F16{_mm512_cvtepi32_ps(sum)}, scale, load(out)));
      }
    }
  }

  /// Rows whose own exponents do not fit were left out of the shared product.
  void run_irregular_rows(const PanelSource* sources) {
    bool unpacked = false;
    for (int64_t row = row_begin_; row < row_end_; ++row) {
      if (args_.rows.regular[superblock_ * args_.num_rows + row]) continue;
      if (!unpacked) unpack_all_blocks(sources);
      unpacked = true;
      run_blocks<1>(row);
    }
  }

  void unpack_all_blocks(const PanelSource* sources) {
    float largest = 0.0F;
    for (int p = 0; p < Panels; ++p) {
      const float mine = unpack_blocks<Panels, Group>(sources[p], num_blocks_, p, unpacked_);
      largest = mine > largest ? mine : largest;
    }
    const bool clamp = !(largest * args_.largest_scale <= kMaxFloat);
    scaling_ = block_scaling<Group>(args_.weight.e4m3_scales, args_.all_regular, clamp);
  }

  template <int Rows>
  void run_blocks(int64_t row) {
    if constexpr (Group == 16) {
      if (scaling_ == BlockScaling::kFused) return run_scaled_blocks<Rows, BlockScaling::kFused>(row);
      if (scaling_ == BlockScaling::kFusedClamped) return run_scaled_blocks<Rows, BlockScaling::kFusedClamped>(row);
    } else {
      if (scaling_ == BlockScaling::kSeparate) return run_scaled_blocks<Rows, BlockScaling::kSeparate>(row);
    }
    run_scaled_blocks<Rows, BlockScaling::kSeparateClamped>(row);
  }

  template <int Rows, BlockScaling Scaling>
  void run_scaled_blocks(int64_t row) {
    TileRows<Rows> tile;
    const float* scales[Rows];
    const std::int32_t* biases[Rows];
    const int64_t num_blocks = args_.weight.num_columns / Group;
    const int64_t first_block = superblock_ * (kSuperblockColumns / Group);
    const int64_t slot = superblock_ * args_.num_rows + row;
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
      // The packed codes of an MXFP4 row are shifted (W4A4): the caller's are not.
      tile.codes[r] = Parts == 1 && Group == 32
                          ? args_.block_codes + (row + r) * args_.weight.num_columns + superblock_ * kSuperblockColumns
                          : args_.rows.codes + (slot + r) * Parts * kSuperblockColumns;
      tile.out[r] = sums(row + r);
      scales[r] = has_block_scales<Parts, Group>() ? args_.block_scales + (row + r) * num_blocks + first_block
                                                   : args_.rows.scales + slot + r;
      biases[r] = args_.rows.block_biases + (row + r) * num_blocks + first_block;
    }
    constexpr int64_t kScaleStep = has_block_scales<Parts, Group>() ? 1 : 0;
    block_tile<Rows, Panels, Parts, Group, Scaling>(unpacked_, num_blocks_, tile, scales, kScaleStep, biases,
                                                    take_ahead());
  }

  const IntegerArgs& args_;
  int64_t first_panel_;
  int64_t row_begin_ = 0, row_end_ = 0;
  int64_t superblock_ = 0;
  int num_blocks_ = 0;
  BlockScaling scaling_ = BlockScaling::kSeparateClamped;
  Ahead ahead_{};
  Unpacked<Panels> unpacked_;
  alignas(64) std::int32_t products_[Tiles::kTiles ? 4 : 1][16][16];
  alignas(64) float sums_[kMaxBlockRows * Panels * 16];
};

/// A multiple of the kernels' row tiles (12 and 6, or 32 and 16).
template <class Tiles>
int64_t rows_per_block(const IntegerArgs& args, int parts) {
  constexpr int64_t kStep = Tiles::kTiles ? 32 : 12;
  const int64_t fitting = kRowBlockBytes / (args.weight.num_columns * parts) / kStep * kStep;
  return max64(2 * kStep, min64(kMaxBlockRows, fitting));
}

template <class Tiles, int Parts, int Group>
void run_panels(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t block_rows = rows_per_block<Tiles>(args, Parts);
  for (int64_t row = 0; row < args.num_rows; row += block_rows) {
    const int64_t row_end = min64(args.num_rows, row + block_rows);
    int64_t panel = panel_begin;
    for (; panel + kPanelGroup <= panel_end; panel += kPanelGroup) {
      PanelGroup<Tiles, kPanelGroup, Parts, Group> group(args, panel);
      group.run(row, row_end);
    }
    for (; panel < panel_end; ++panel) {
      PanelGroup<Tiles, 1, Parts, Group> group(args, panel);
      group.run(row, row_end);
    }
  }
}

template <class Tiles>
void run_integer(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.num_parts == 2) {
    if (args.weight.group_size == 32) return run_panels<Tiles, 2, 32>(args, panel_begin, panel_end);
    return run_panels<VectorTiles, 2, 16>(args, panel_begin, panel_end);
  }
  if (args.weight.group_size == 32) return run_panels<Tiles, 1, 32>(args, panel_begin, panel_end);
  return run_panels<VectorTiles, 1, 16>(args, panel_begin, panel_end);
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
