#pragma once
// NVFP4 weights times bfloat16 activations on AMX tiles, for many rows. Arithmetic and layout: bfloat16_rows.h.
//
// Loops, from the outside: blocks of rows; ranges of columns; pairs of panels, whose unpacked weights of a range stay
// in L1; pairs of row tiles; steps of 32 columns. Sums wait as tiles in L2 from range to range, in float32: that
// changes no bit.
//
// What limits it is L2: a step of two by two tiles takes 64 cycles, 2 KiB of activations, and 1 KiB of sums that come
// and go.

#include "amx_tiles.h"
#include "lanes.h"
#include "pair_weights.h"
#include "silu.h"

namespace nybble::NYBBLE_ISA {

namespace {

using Sums = float[16][16];  // of a row tile and a panel

/// Sums [row tile a][panel p] in tmm(2a + p), activations in tmm4 and 5, weights in tmm6 and 7.
template <class Backend, int RowTiles, int Panels>
struct Bfloat16Tiles {
  /// 32 columns. `before.template operator()<Tile>(place)` runs before the sums of a place are added to.
  template <class Before>
  static void multiply(const std::uint16_t* first, const std::uint16_t* second, const PairWeights::Tile* weights,
                       const Before& before) {
    before.template operator()<0>(0);
    Backend::template load<6>(weights[0], 64);
    Backend::template load<4>(first, 64);
    Backend::template dot_bfloat16<0, 4, 6>();
    if constexpr (Panels == 2) {
      before.template operator()<1>(1);
      Backend::template load<7>(weights[1], 64);
      Backend::template dot_bfloat16<1, 4, 7>();
    }
    if constexpr (RowTiles == 2) {
      before.template operator()<2>(2);
      Backend::template load<5>(second, 64);
      Backend::template dot_bfloat16<2, 5, 6>();
      if constexpr (Panels == 2) {
        before.template operator()<3>(3);
        Backend::template dot_bfloat16<3, 5, 7>();
      }
    }
  }

  static void store(Sums* sums) {
    Backend::template store<0>(sums[0], 64);
    if constexpr (Panels == 2) Backend::template store<1>(sums[1], 64);
    if constexpr (RowTiles == 2) Backend::template store<2>(sums[2], 64);
    if constexpr (RowTiles == 2 && Panels == 2) Backend::template store<3>(sums[3], 64);
  }
};

/// Panels [begin, end) of a product, gated ones with those that belong to them.
template <class Backend>
class TileGroup {
 public:
  TileGroup(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums)
      : args_(args),
        panel_begin_(panel_begin),
        panel_end_(panel_end),
        num_ranges_((args.weight.num_columns + kTileRangeColumns - 1) / kTileRangeColumns),
        weights_(args.weight),
        sums_(reinterpret_cast<Sums*>(sums)) {}

  /// A block of rows.
  void run(int64_t tile_begin, int64_t tile_end) {
    tile_begin_ = tile_begin;
    tile_end_ = tile_end;
    const int64_t num_row_pairs = (tile_end - tile_begin + 1) / 2;
    PanelPair pair = make_pair(0, panel_begin_);
    for (PanelPair next; pair.num_panels != 0; pair = next) {
      next = after(pair);
      weights_.begin(pair, next, after(next), num_row_pairs * pair.num_steps);
      run_pair(pair, sums_ + (pair.panels[0] - panel_begin_) / width() * (num_row_pairs * 4));
    }
    store_pending();
    for (int64_t row = tile_begin * kTileRows; row < min64(args_.num_rows, tile_end * kTileRows); ++row) write(row);
  }

 private:
  /// Panels of the first half that a pair holds.
  int64_t width() const { return args_.gated ? 1 : 2; }

  PanelPair make_pair(int64_t range, int64_t panel) const {
    if (range >= num_ranges_) return {};
    const int64_t steps = num_steps(args_.weight.num_columns) - range * kRangeSteps;
    const int64_t second = args_.gated ? gated_panel(args_.weight, panel) : panel + 1;
    return {{panel, second},
            args_.gated || second < panel_end_ ? 2 : 1,
            range,
            static_cast<int>(min64(kRangeSteps, steps))};
  }

  PanelPair after(const PanelPair& pair) const {
    if (pair.num_panels == 0) return pair;
    const int64_t panel = pair.panels[0] + width();
    return panel < panel_end_ ? make_pair(pair.range, panel) : make_pair(pair.range + 1, panel_begin_);
  }

  void run_pair(const PanelPair& pair, Sums* sums) {
    for (int64_t tile = tile_begin_; tile < tile_end_; tile += 2, sums += 4) {
      const std::uint16_t* rows = range_tiles(args_.rows, pair.range, tile);
      const bool last = tile + 2 >= tile_end_;
      if (tile + 2 <= tile_end_) {
        pair.num_panels == 2 ? run_rows<2, 2>(pair, rows, last, sums) : run_rows<2, 1>(pair, rows, last, sums);
      } else {
        pair.num_panels == 2 ? run_rows<1, 2>(pair, rows, last, sums) : run_rows<1, 1>(pair, rows, last, sums);
      }
    }
  }

  /// Whole pairs leave their sums in the tiles until the next one takes their place: stores between its products wait
  /// for nobody.
  template <int RowTiles, int Panels>
  void run_rows(const PanelPair& pair, const std::uint16_t* rows, bool last, Sums* sums) {
    using Tiles = Bfloat16Tiles<Backend, RowTiles, Panels>;
    constexpr bool kWhole = RowTiles == 2 && Panels == 2;
    if (!kWhole) store_pending();
    Sums* const pending = pending_;
    const auto exchange = [&]<int Tile>(int place) {
      if (kWhole && pending != nullptr) Backend::template store<Tile>(pending[place], 64);
      if (pair.range == 0) {
        Backend::template zero<Tile>();
      } else {
        Backend::template load<Tile>(sums[place], 64);
      }
    };
    const auto multiply = [&](int i, const auto& before) {
      Tiles::multiply(rows + i * kTileElements, rows + (kRangeSteps + i) * kTileElements, weights_.tiles(i), before);
      weights_.fetch();
      if (last) weights_.replace(i);
    };
    multiply(0, exchange);
    for (int i = 1; i < pair.num_steps; ++i) multiply(i, []<int Tile>(int) {});
    if (kWhole) {
      pending_ = sums;
    } else {
      Tiles::store(sums);
    }
  }

  void store_pending() {
    if (pending_ != nullptr) Bfloat16Tiles<Backend, 2, 2>::store(pending_);
    pending_ = nullptr;
  }

  /// The outputs of a row: in one piece, which memory likes better than each pair's when it is done.
  void write(int64_t row) const {
    float* out = args_.out + row * (args_.gated ? args_.weight.num_rows / 2 : args_.weight.num_rows);
    const int64_t tile = row / kTileRows - tile_begin_;
    const int64_t pair_sums = (tile_end_ - tile_begin_ + 1) / 2 * 4;
    const Sums* sums = sums_ + tile / 2 * 4 + tile % 2 * 2;
    const auto values = [&](int64_t panel, int p) {
      const F16 factor =
          args_.quantized ? output_factor<1>(args_.weight, panel) : output_factor<2>(args_.weight, panel);
      return nybble::NYBBLE_ISA::load(sums[p][row % kTileRows]) * factor;
    };
    for (int64_t panel = panel_begin_; panel < panel_end_; panel += width(), sums += pair_sums) {
      const Fp4Panel* info = args_.weight.panels + panel;
      if (args_.gated) {
        const F16 up = values(gated_panel(args_.weight, panel), 1);
        store_partial(out + info->first_output, silu_mul(values(panel, 0), up), info->num_lanes);
        continue;
      }
      store_partial(out + info->first_output, values(panel, 0), info->num_lanes);
      if (panel + 1 < panel_end_) store_partial(out + info[1].first_output, values(panel + 1, 1), info[1].num_lanes);
    }
  }

  const Bfloat16Args& args_;
  int64_t panel_begin_, panel_end_;
  int64_t num_ranges_;
  int64_t tile_begin_ = 0, tile_end_ = 0;
  PairWeights weights_;
  Sums* sums_;               // [pairs of panels][pairs of row tiles][4]
  Sums* pending_ = nullptr;  // sums that are in the tiles yet
};

template <class Backend>
void run_bfloat16(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums) {
  TileGroup<Backend> group(args, panel_begin, panel_end, sums);
  constexpr int64_t kBlockTiles = kTileGroupBytes / (kTileGroupPanels * static_cast<int64_t>(sizeof(Sums)));
  for (int64_t tile = 0; tile < args.rows.num_tiles; tile += kBlockTiles) {
    group.run(tile, min64(args.rows.num_tiles, tile + kBlockTiles));
  }
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
