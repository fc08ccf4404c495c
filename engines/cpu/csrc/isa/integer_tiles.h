#pragma once
// MXFP4 weights times integer activations on int8 tiles of 16 rows x 64 bytes (amx_tiles.h), for many rows: the bits of
// linear_integer_avx512.cpp.
//
// A group of one or two panels (16 or 32 outputs) is unpacked to bytes one superblock at a time, into L1; all rows of a
// block of rows then run over it. The running sums of the block of rows stay in L1 or L2.

#include "by_block_avx512.h"
#include "silu.h"
#include "spread_rows_avx512.h"
#include "tile_steps.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kPanelGroup = 2;
constexpr int64_t kTileStep = 32;  // rows of two tiles
constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kRowBlockBytes = 768 << 10;  // activation codes of a block of rows: part of L2

template <class Tiles, int Panels, int Parts>
class PanelGroup {
 public:
  explicit PanelGroup(const IntegerArgs& args)
      : args_(args), num_superblocks_(count_superblocks(args.weight.num_columns)) {}

  void take_rows(int64_t row_begin, int64_t row_end) {
    row_begin_ = row_begin;
    row_end_ = row_end;
    for (int64_t row = row_begin; row < row_end; ++row) clear(row);
  }

  /// The panels from this one on, or gates and what they let through.
  void run(int64_t first_panel) {
    const int64_t step = args_.gated ? args_.weight.num_panels / 2 : 1;
    for (int p = 0; p < Panels; ++p) panels_[p] = first_panel + p * step;
    superblocks_[0].begin(args_.weight, panels_, 0);
    unpacked_ = false;
    for (int64_t superblock = 0; superblock < num_superblocks_; ++superblock) run_superblock(superblock);
    steps_.finish();
    store();
  }

 private:
  using Steps = TileSteps<Tiles, Panels, Parts>;
  using Superblock = typename Steps::Superblock;

  F16* sums(int64_t row) { return sums_[row - row_begin_]; }

  void run_superblock(int64_t superblock) {
    fetch_outputs(superblock);
    const Superblock& weights = superblocks_[superblock % 2];
    Superblock* next = superblock + 1 < num_superblocks_ ? &superblocks_[(superblock + 1) % 2] : nullptr;
    if (next != nullptr) next->begin(args_.weight, panels_, superblock + 1);
    const bool irregular = !weights.shared || has_irregular_rows(superblock);
    if (weights.shared) {
      if (!unpacked_) steps_.weights().unpack_first_half(weights);
      // Irregular rows are multiplied after the others: until then the weights stay.
      unpacked_ = !irregular && next != nullptr && next->shared;
      steps_.run(weights, tile_rows(superblock), upcoming(weights), unpacked_ ? next : nullptr);
    } else {
      unpacked_ = false;
    }
    if (irregular) add_irregular_rows(superblock, weights);
  }

  /// Fetches what store() will write, a part of the rows with each superblock.
  void fetch_outputs(int64_t superblock) const {
    const int64_t num_rows = row_end_ - row_begin_;
    const int64_t end = row_begin_ + num_rows * (superblock + 1) / num_superblocks_;
    for (int64_t row = row_begin_ + num_rows * superblock / num_superblocks_; row < end; ++row) {
      for (int p = 0; p < num_outputs(); ++p) prefetch_to_l2(reinterpret_cast<const std::uint8_t*>(output(row, p)));
    }
  }

  int num_outputs() const { return args_.gated ? 1 : Panels; }

  float* output(int64_t row, int p) const {
    const int64_t width = args_.gated ? args_.weight.num_rows / 2 : args_.weight.num_rows;
    return args_.out + row * width + args_.weight.panels[panels_[p]].first_output;
  }

  void clear(int64_t row) {
    for (int p = 0; p < Panels; ++p) sums(row)[p] = splat(0.0F);
  }

  void store() {
    F16 factors[Panels];
    for (int p = 0; p < Panels; ++p) factors[p] = output_factor<Parts>(args_.weight, panels_[p]);
    for (int64_t row = row_begin_; row < row_end_; ++row) {
      for (int p = 0; p < num_outputs(); ++p) {
        F16 values = sums(row)[p] * factors[p];
        if (args_.gated) values = silu_mul(values, sums(row)[Panels - 1] * factors[Panels - 1]);
        store_partial(output(row, p), values, args_.weight.panels[panels_[p]].num_lanes);
      }
      clear(row);
    }
  }

  TileRows tile_rows(int64_t superblock) {
    const int64_t slot = superblock * args_.rows.stride + row_begin_, num_rows = row_end_ - row_begin_;
    return {args_.rows.codes + slot * Parts * kSuperblockColumns, args_.rows.scales + slot,
            reinterpret_cast<float*>(sums_), num_rows};
  }

  bool has_irregular_rows(int64_t superblock) const {
    for (int64_t row = row_begin_; !args_.all_regular && row < row_end_; row += kTileStep) {
      if (irregular_rows(args_, row, tile_step_rows(row), superblock) != 0) return true;
    }
    return false;
  }

  int tile_step_rows(int64_t row) const { return static_cast<int>(min64(kTileStep, row_end_ - row)); }

  /// Rows whose own exponents do not fit have zeros in the shared product, which may be added later than theirs.
  void add_irregular_rows(int64_t superblock, const Superblock& weights) {
    weights.shared ? steps_.add_earlier() : steps_.finish();
    for (int64_t row = row_begin_; row < row_end_; row += kTileStep) {
      const int num_rows = tile_step_rows(row);
      std::uint32_t left = weights.shared ? irregular_rows(args_, row, num_rows, superblock) : all_rows(num_rows);
      if (Parts == 1 && weights.shared) left = gather_spread_rows(superblock, row, left, weights);
      if (left != 0) add_rows_by_block(superblock, row, left, weights);
    }
    if (spread_.count() != 0) run_spread_rows(superblock, weights);
  }

  void add_rows_by_block(int64_t superblock, int64_t first_row, std::uint32_t which, const Superblock& weights) {
    F16 own[kTileStep];
    for (int p = 0; p < Panels; ++p) {
      for (std::uint32_t left = which; left != 0; left &= left - 1) {
        const int i = __builtin_ctz(left);
        own[i] = sums(first_row + i)[p];
      }
      add_by_block<Parts, 32>(args_, first_row, which, weights.sources[p], superblock, weights.num_blocks, own);
      for (std::uint32_t left = which; left != 0; left &= left - 1) {
        const int i = __builtin_ctz(left);
        sums(first_row + i)[p] = own[i];
      }
    }
  }

  /// Takes the rows first_row + i of bits i that two parts are enough for, multiplies whenever a tile is full, and
  /// returns the others.
  std::uint32_t gather_spread_rows(int64_t superblock, int64_t first_row, std::uint32_t which,
                                   const Superblock& weights) {
    std::uint32_t others = 0;
    for (; which != 0; which &= which - 1) {
      const int64_t row = first_row + __builtin_ctz(which);
      if (!is_spread(args_.rows, superblock * args_.rows.stride + row)) {
        others |= which & (0U - which);
        continue;
      }
      spread_.add(args_, row, superblock, weights.num_blocks);
      if (spread_.count() == SpreadRows::kMaxRows) run_spread_rows(superblock, weights);
    }
    return others;
  }

  void run_spread_rows(int64_t superblock, const Superblock& weights) {
    steps_.empty_tiles();
    const std::int32_t (*products)[16][16] =
        steps_.multiply_apart(weights.num_blocks, spread_.first_parts(), spread_.second_parts(), SpreadRows::kRowBytes);
    for (int i = 0; i < spread_.count(); ++i) {
      const int64_t row = spread_.row(i);
      const F16 scale = splat(args_.rows.scales[superblock * args_.rows.stride + row]);
      for (int p = 0; p < Panels; ++p) {
        const __m512i first = _mm512_slli_epi32(_mm512_load_si512(products[p][i]), kPartShift);
        const __m512i sum = _mm512_add_epi32(first, _mm512_load_si512(products[2 + p][i]));
        F16* out = sums(row) + p;
        *out = fma(F16{_mm512_cvtepi32_ps(sum)}, weights.quarters[p] * scale, *out);
      }
    }
    spread_.clear();
  }

  /// The same superblock of the panels after these.
  typename Steps::Upcoming upcoming(const Superblock& weights) const {
    const int64_t offset = num_outputs() * static_cast<int64_t>(args_.weight.panel_bytes);
    typename Steps::Upcoming upcoming;
    for (int p = 0; p < Panels; ++p) {
      prefetch_to_l2(weights.sources[p].scales + offset);
      upcoming.codes[p] = weights.sources[p].codes + offset;
    }
    return upcoming;
  }

  const IntegerArgs& args_;
  int64_t num_superblocks_;
  int64_t panels_[Panels] = {};
  int64_t row_begin_ = 0, row_end_ = 0;
  Superblock superblocks_[2];
  bool unpacked_ = false;  // the first half of the next superblock
  Steps steps_;
  SpreadRows spread_;
  F16 sums_[kMaxBlockRows][Panels];
};

inline int64_t rows_per_block(const IntegerArgs& args) {
  const int64_t fitting = kRowBlockBytes / (args.weight.num_columns * args.num_parts) / kTileStep * kTileStep;
  return max64(2 * kTileStep, min64(kMaxBlockRows, fitting));
}

template <class Tiles, int Parts>
void run_panel_groups(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t block_rows = rows_per_block(args);
  PanelGroup<Tiles, kPanelGroup, Parts> pairs(args);
  for (int64_t row = 0; row < args.num_rows; row += block_rows) {
    const int64_t row_end = min64(args.num_rows, row + block_rows);
    pairs.take_rows(row, row_end);
    int64_t panel = panel_begin;
    for (; args.gated && panel < panel_end; ++panel) pairs.run(panel);
    for (; panel + kPanelGroup <= panel_end; panel += kPanelGroup) pairs.run(panel);
    if (panel < panel_end) {
      PanelGroup<Tiles, 1, Parts> single(args);
      single.take_rows(row, row_end);
      single.run(panel);
    }
  }
}

template <class Tiles>
void run_integer_tiles(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.num_parts == 2) return run_panel_groups<Tiles, 2>(args, panel_begin, panel_end);
  run_panel_groups<Tiles, 1>(args, panel_begin, panel_end);
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
