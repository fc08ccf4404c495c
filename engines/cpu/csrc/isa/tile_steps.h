#pragma once
// Steps of 32 rows (W4A4), or of 16 rows in two parts, times a superblock of one or two panels on tiles, overlapped: in
// eight slots, each with one product of tiles, the sums of the step before leave the tiles, are scaled and added, and
// the next superblock is unpacked. Products take 16 cycles each, all else hardly less, and a processor looks ahead no
// further than about a step.

#include "amx_tiles.h"
#include "scaled_products_avx512.h"
#include "unpacked_panels_avx512.h"

namespace nybble::NYBBLE_ISA {

/// A superblock of some rows.
struct TileRows {
  const std::int8_t* codes;  // [rows][Parts][128]
  const float* scales;
  float* sums;  // [rows][Panels][16]
  int64_t num_rows;
};

template <class Tiles, int Panels, int Parts>
class TileSteps {
 public:
  static constexpr int64_t kRows = 32 / Parts;  // of a step; those past the last are multiplied too and left out
  static constexpr unsigned kFirstPieces = UnpackedPanels<Panels>::kPieces / 2;  // columns that a step begins with

  UnpackedPanels<Panels>& weights() { return weights_; }

  /// A superblock, the first half of whose columns is unpacked. Leaves `next` in the same state if there is one.
  void run(const PanelSuperblock<Panels>& superblock, const TileRows& rows, UpcomingWeights upcoming,
           const PanelSuperblock<Panels>* next) {
    const bool halves = superblock.num_blocks > 2;
    const int num_steps = static_cast<int>((rows.num_rows + kRows - 1) / kRows);
    const std::int8_t* codes = rows.codes;
    // Every other step goes backwards over the columns: it begins where weights are in tiles already.
    int near = 0;
    for (int step = 0; step < num_steps; ++step) {
      const bool load_weights = step == 0 || !halves;
      const Products before = earlier_->local(), waiting = last_->local();
      run_slot<0, 0, 0>(before, codes, near, load_weights, upcoming);
      run_slot<0, 0, 1>(before, codes, near, load_weights, upcoming);
      run_slot<0, 1, 0>(waiting, codes, near, load_weights, upcoming);
      run_slot<0, 1, 1>(waiting, codes, near, load_weights, upcoming);
      sums_target_ = products_;
      std::swap(earlier_, last_);
      last_->scales = rows.scales + step * kRows;
      last_->sums = rows.sums + step * kRows * Panels * 16;
      last_->num_rows = rows.num_rows - step * kRows;
      for (int p = 0; p < Panels; ++p) last_->quarters[p] = superblock.quarters[p].v;
      if (step + 1 == num_steps && next != nullptr) weights_.begin(*next);
      near = halves ? 64 - near : 0;
      run_slot<1, 0, 0>(waiting, codes, halves ? near : -1, true, upcoming);
      run_slot<1, 0, 1>(waiting, codes, halves ? near : -1, true, upcoming);
      run_slot<1, 1, 0>(waiting, codes, halves ? near : -1, true, upcoming);
      run_slot<1, 1, 1>(waiting, codes, halves ? near : -1, true, upcoming);
      codes += kRows * Parts * kSuperblockColumns;
    }
  }

  /// Adds the sums of all steps but the last.
  __attribute__((noinline)) void add_earlier() {
    if (Parts == 1) earlier_->local().template add<24, 8>(products_);
    earlier_->num_rows = 0;
  }

  /// Frees the tiles for other products, after add_earlier().
  __attribute__((noinline)) void empty_tiles() {
    store_all(sums_target_);
    sums_target_ = spare_;
  }

  /// Adds the sums of all steps.
  __attribute__((noinline)) void finish() {
    add_earlier();
    empty_tiles();
    last_->local().template add<0, kRows>(products_);
    last_->num_rows = 0;
  }

  /// Sums of two tiles of activations beside the steps, after empty_tiles(): [tile of rows][panel].
  const std::int32_t (*multiply_apart(int num_blocks, const std::int8_t* first, const std::int8_t* second,
                                      int64_t row_bytes))[16][16] {
    for_each_tile([](auto a, auto p) { Tiles::template zero<a(), p()>(); });
    for (int k = 0; k < num_blocks * 32; k += 64) {
      Tiles::template load_activations<0>(first + k, row_bytes);
      Tiles::template load_activations<1>(second + k, row_bytes);
      Tiles::template load_weights<0>(weights_.vectors(k), Panels * 64);
      if constexpr (Panels == 2) Tiles::template load_weights<1>(weights_.vectors(k) + 64, Panels * 64);
      for_each_tile([](auto a, auto p) { Tiles::template multiply<a(), p()>(); });
    }
    store_all(spare_);
    return spare_;
  }

 private:
  using Products = ScaledProducts<Panels, Parts>;

  template <int Value>
  using Constant = std::integral_constant<int, Value>;

  template <typename Function>
  static void for_each_tile(Function function) {
    function(Constant<0>(), Constant<0>());
    function(Constant<1>(), Constant<0>());
    if constexpr (Panels == 2) {
      function(Constant<0>(), Constant<1>());
      function(Constant<1>(), Constant<1>());
    }
  }

  static void store_all(std::int32_t (*target)[16][16]) {
    for_each_tile([&](auto a, auto p) { Tiles::template store<a(), p()>(target); });
  }

  /// 64 columns from `column` on, or no product where that is negative.
  template <int Half, int A, int P>
  __attribute__((always_inline)) void run_slot(const Products& waiting, const std::int8_t* codes, int column,
                                               bool load_weights, UpcomingWeights& upcoming) {
    if (P < Panels && (Half == 0 || column >= 0)) {
      const std::int8_t* rows = codes + A * (Parts == 2 ? 1 : 16) * kSuperblockColumns + column;
      if (A == 0 && load_weights) Tiles::template load_weights<P>(weights_.vectors(column) + P * 64, Panels * 64);
      if (P == 0) Tiles::template load_activations<A>(rows, Parts * kSuperblockColumns);
      if (Half == 0) {
        Tiles::template store<A, P>(sums_target_);
        Tiles::template zero<A, P>();
      }
      Tiles::template multiply<A, P>();
    }
    // Of two parts' sums rows need all four tiles, otherwise those of a tile of rows: they are there two slots later.
    constexpr int kSlot = Half * 4 + A * 2 + P;
    if (Parts == 1) waiting.template add<(kSlot + 6) % 8 * 4, 4>(products_);
    if (Parts == 2 && Half == 1) waiting.template add<kSlot % 4 * 4, 4>(products_);
    upcoming.fetch_line();
    upcoming.fetch_line();
    // The second half of the columns is needed from slot 4 on, and both halves are in tiles after the last step's
    // slot 5.
    if (kSlot != 4) weights_.unpack_piece();
    if (kSlot == 7) weights_.unpack_piece();
  }

  UnpackedPanels<Panels> weights_;
  Products steps_[2];
  Products* earlier_ = steps_;   // most or all of its sums are added
  Products* last_ = steps_ + 1;  // its sums are in tiles
  alignas(64) std::int32_t products_[4][16][16];
  alignas(64) std::int32_t spare_[4][16][16];
  std::int32_t (*sums_target_)[16][16] = spare_;  // of what is in the tiles
};

}  // namespace nybble::NYBBLE_ISA
