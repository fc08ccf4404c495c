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
  using Superblock = PanelSuperblock<Panels>;

  struct Upcoming {
    const std::uint8_t* codes[Panels];
  };

  static constexpr int64_t kRows = 32 / Parts;  // of a step; those past the last are multiplied too and left out

  UnpackedPanels<Panels>& weights() { return weights_; }

  /// A superblock, the first half of whose columns is unpacked. Leaves `next` in the same state if there is one.
  /// `upcoming`: a superblock of each panel, to be fetched into L2.
  void run(const Superblock& superblock, const TileRows& rows, const Upcoming& upcoming, const Superblock* next) {
    const bool halves = superblock.num_blocks > 2;
    const int num_steps = static_cast<int>((rows.num_rows + kRows - 1) / kRows);
    const std::int8_t* codes = rows.codes;
    // Every other step goes backwards over the columns: it begins where weights are in tiles already.
    int near = 0;
    for (int step = 0; step < num_steps; ++step) {
      const Products before = earlier_->local(), waiting = last_->local();
      const Slot first{codes, near, step == 0 || !halves, step == 0 ? &upcoming : nullptr,
                       step == 0 ? &superblock : nullptr};
      run_slot<0, 0, 0>(first, before);
      run_slot<0, 0, 1>(first, before);
      run_slot<0, 1, 0>(first, waiting);
      run_slot<0, 1, 1>(first, waiting);
      sums_target_ = products_;
      Products* const free = earlier_;
      earlier_ = last_;
      last_ = free;
      last_->scales = rows.scales + step * kRows;
      last_->sums = rows.sums + step * kRows * Panels * 16;
      last_->num_rows = rows.num_rows - step * kRows;
      for (int p = 0; p < Panels; ++p) last_->quarters[p] = superblock.quarters[p].v;
      near = halves ? 64 - near : 0;
      const Slot second{codes, halves ? near : -1, true, first.upcoming, step + 1 == num_steps ? next : nullptr};
      run_slot<1, 0, 0>(second, waiting);
      run_slot<1, 0, 1>(second, waiting);
      run_slot<1, 1, 0>(second, waiting);
      run_slot<1, 1, 1>(second, waiting);
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
    for_each_tile([](auto a, auto p) { Tiles::template zero<a.value, p.value>(); });
    for (int k = 0; k < num_blocks * 32; k += 64) {
      Tiles::template load_activations<0>(first + k, row_bytes);
      Tiles::template load_activations<1>(second + k, row_bytes);
      Tiles::template load_weights<0>(weights_.vectors(k), Panels * 64);
      if constexpr (Panels == 2) Tiles::template load_weights<1>(weights_.vectors(k) + 64, Panels * 64);
      for_each_tile([](auto a, auto p) { Tiles::template multiply<a.value, p.value>(); });
    }
    store_all(spare_);
    return spare_;
  }

 private:
  using Products = ScaledProducts<Panels, Parts>;

  template <int Value>
  struct Constant {
    static constexpr int value = Value;
  };

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
    for_each_tile([&](auto a, auto p) { Tiles::template store<a.value, p.value>(target); });
  }

  /// What the slots of half a step do beside adding.
  struct Slot {
    const std::int8_t* codes;
    int column;  // the first of 64, or negative: no product
    bool load_weights;
    const Upcoming* upcoming;      // to be fetched, or null
    const Superblock* superblock;  // to be unpacked, or null
  };

  template <int Half, int A, int P>
  __attribute__((always_inline)) void run_slot(const Slot& slot, const Products& waiting) {
    constexpr int kSlot = Half * 4 + A * 2 + P;
    if (P < Panels && (Half == 0 || slot.column >= 0)) {
      const std::int8_t* rows = slot.codes + A * (Parts == 2 ? 1 : 16) * kSuperblockColumns + slot.column;
      const std::uint8_t* vectors = weights_.vectors(slot.column) + P * 64;
      if (A == 0 && slot.load_weights) Tiles::template load_weights<P>(vectors, Panels * 64);
      if (P == 0) Tiles::template load_activations<A>(rows, Parts * kSuperblockColumns);
      if (Half == 0) {
        Tiles::template store<A, P>(sums_target_);
        Tiles::template zero<A, P>();
      }
      Tiles::template multiply<A, P>();
    }
    // A row in two parts is loaded for half as many sums.
    if (Parts == 2) fetch_activations<kSlot>(slot.codes + kRows * Parts * kSuperblockColumns);
    // Of two parts' sums rows need all four tiles, otherwise those of a tile of rows: they are there two slots later.
    if (Parts == 1) waiting.template add<(kSlot + 6) % 8 * 4, 4>(products_);
    if (Parts == 2 && Half == 1) waiting.template add<kSlot % 4 * 4, 4>(products_);
    if (slot.upcoming != nullptr) fetch<kSlot>(*slot.upcoming);
    if (slot.superblock != nullptr) unpack<kSlot>(*slot.superblock);
  }

  /// A part of the next step's activations into L1.
  template <int Slot>
  __attribute__((always_inline)) static void fetch_activations(const std::int8_t* codes) {
    constexpr int kLines = kRows * Parts * kSuperblockColumns / 64 / 8;
    NYBBLE_UNROLL for (int i = 0; i < kLines; ++i) prefetch_line(codes + (Slot * kLines + i) * 64);
  }

  /// Few lines a slot: many at once would keep activations waiting.
  template <int Slot>
  __attribute__((always_inline)) static void fetch(const Upcoming& upcoming) {
    constexpr int kLines = kSuperblockColumns * 8 / 64 / 8;
    for (int p = 0; p < Panels; ++p) {
      for (int i = 0; i < kLines; ++i) prefetch_to_l2(upcoming.codes[p] + (Slot * kLines + i) * 64);
    }
  }

  /// The second half of a superblock's columns is needed from slot 4 on. Both are in tiles after slot 5 of the last
  /// step: from there on the first half of the next one may take their place.
  template <int Slot>
  __attribute__((always_inline)) void unpack(const Superblock& superblock) {
    constexpr int P = Slot % Panels;
    if constexpr (Slot < 2 * Panels) weights_.template unpack<2 + Slot / Panels, P>(superblock);
    if constexpr (Slot == 5) weights_.template unpack<0, 0>(superblock);
    if constexpr (Slot == 6) weights_.template unpack<1, 0>(superblock);
    if constexpr (Slot == 6 && Panels == 2) weights_.template unpack<0, 1>(superblock);
    if constexpr (Slot == 7 && Panels == 2) weights_.template unpack<1, 1>(superblock);
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
