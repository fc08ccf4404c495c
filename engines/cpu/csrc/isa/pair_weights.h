#pragma once
// NVFP4 weights of a pair of panels on their way into the products on bfloat16 tiles (bfloat16_tiles.h).

#include "bfloat16_weights_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// One or two panels and a range of columns. The second panel of a gated product holds what the first one's outputs
/// let through.
struct PanelPair {
  int64_t panels[2];
  int num_panels;  // 0: none
  int64_t range;
  int num_steps;
};

/// Lines of packed weights on their way into L2, a few at a time: many at once would wait for each other.
class PairFetch {
 public:
  explicit PairFetch(const Fp4View& weight) : weight_(weight) {}

  void begin(const PanelPair& pair, int64_t num_portions) {
    pair_ = pair;
    place_ = 0;
    is_scales_ = false;
    left_ = pair.num_panels * (kCodeLines + kScaleLines);
    portion_ = (left_ + num_portions - 1) / num_portions;
    find_run();
  }

  void fetch() {
    for (int64_t count = min64(portion_, left_); count > 0; --count, --left_) {
      prefetch_to_l2(line_);
      line_ += 64;
      if (line_ == run_end_) next_run();
    }
  }

 private:
  static constexpr int kCodeLines = kTileRangeColumns / 8;
  static constexpr int kScaleLines = kTileRangeColumns / 64 + 1;

  void find_run() {
    const std::uint8_t* panel = weight_.data + static_cast<std::size_t>(pair_.panels[place_]) * weight_.panel_bytes;
    line_ = is_scales_ ? panel + weight_.scale_offset + pair_.range * kTileRangeColumns
                       : panel + pair_.range * (kTileRangeColumns * 8);
    run_end_ = line_ + (is_scales_ ? kScaleLines : kCodeLines) * 64;
  }

  /// Of a panel the codes, then the scales; then the next panel's.
  __attribute__((noinline)) void next_run() {
    place_ = is_scales_ ? place_ ^ 1 : place_;
    is_scales_ = !is_scales_;
    find_run();
  }

  const Fp4View& weight_;
  PanelPair pair_ = {};
  int place_ = 0;
  bool is_scales_ = false;
  const std::uint8_t* line_ = nullptr;
  const std::uint8_t* run_end_ = nullptr;
  int64_t left_ = 0, portion_ = 0;
};

/// The unpacked weights of a pair in L1. While the last row tiles are multiplied by them the next pair's take their
/// place, step by step; the packed weights of the one after come into L2 meanwhile.
class PairWeights {
 public:
  using Tile = std::uint16_t[16][32];

  explicit PairWeights(const Fp4View& weight) : weight_(weight), fetch_(weight) {}

  /// A tile for each panel.
  const Tile* tiles(int step) const { return tiles_[step]; }

  /// `pair` is to be multiplied, in so many steps altogether; then `next` is, and `later`.
  void begin(const PanelPair& pair, const PanelPair& next, const PanelPair& later, int64_t num_steps) {
    for (int i = num_replaced_; i < pair.num_steps; ++i) unpack(pair, i);
    next_ = next;
    num_replaced_ = static_cast<int>(next.num_panels == 0 ? 0 : min64(pair.num_steps, next.num_steps));
    fetch_.begin(later, num_steps);
  }

  void fetch() { fetch_.fetch(); }

  /// Nobody needs the step any more.
  void replace(int i) {
    if (i < num_replaced_) unpack(next_, i);
  }

 private:
  __attribute__((noinline)) void unpack(const PanelPair& pair, int i) {
    const int64_t column = pair.range * kTileRangeColumns + i * kTileColumns;
    for (int p = 0; p < pair.num_panels; ++p) {
      const std::uint8_t* panel = weight_.data + static_cast<std::size_t>(pair.panels[p]) * weight_.panel_bytes;
      unpack_tile(panel + column * 8, panel + weight_.scale_offset + column, column + 16 < weight_.num_columns,
                  tiles_[i][p]);
    }
  }

  const Fp4View& weight_;
  PairFetch fetch_;
  PanelPair next_ = {};
  int num_replaced_ = 0;
  alignas(64) Tile tiles_[kTileRangeColumns / kTileColumns][2];
};

}  // namespace

}  // namespace nybble::NYBBLE_ISA
