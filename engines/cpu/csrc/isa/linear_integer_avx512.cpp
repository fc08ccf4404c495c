// FP4 weights times integer activations on VNNI: W4A4 (codes) and W4A16 (16-bit integers in two parts), any number of
// rows. The arithmetic is at the top of linear_w4a4.cpp and in integer_rows.h.
//
// Rows are cut into tiles whose sums stay in registers. What a tile adds to the time its products take, unpacking and
// scaling, is a tenth to a third; unpacking once for many tiles, into L1, was slower: its stores and loads cost as
// much.

#include "block_pairs_avx512.h"
#include "pair_tile_avx512.h"
#include "row_tiles.h"
#include "shared_rows_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kMostPairRows = 12;  // more are cut into tiles of at least half as many

bool takes_pairs(const IntegerArgs& args) {
  return takes_pairs(args.reading, args.weight, args.num_rows, args.num_parts);
}

/// A panel by itself, or gates and what they let through one after the other.
template <class Kernel, int Rows>
void run_alone(const IntegerArgs& args, int64_t row, int64_t panel) {
  F16 sums[Rows];
  Kernel::template sum<Rows>(args, row, panel, sums);
  if (!args.gated) return store_outputs<Rows, Kernel::kParts>(args, row, panel, sums);
  F16 values[Rows];
  Kernel::template sum<Rows>(args, row, gated_panel(args.weight, panel), values);
  store_gated<Rows, Kernel::kParts>(args, row, panel, sums, values);
}

/// MXFP4.
template <bool Vbmi, int Parts>
struct SharedKernel {
  static constexpr int kParts = Parts, kMaxRows = 24 / Parts;

  static int max_rows(const IntegerArgs& args) { return takes_pairs(args) ? kMostPairRows : kMaxRows; }

  /// Returns the number of panels it computed, from `panel` on.
  template <int Rows>
  static int64_t run(const IntegerArgs& args, int64_t row, int64_t panel, int64_t panel_end) {
    if constexpr (Vbmi && Parts == 1 && Rows >= kMostPairRows / 2 && Rows <= kMostPairRows) {
      if (takes_pairs(args) && (args.gated || panel + 1 < panel_end)) return run_pair<Rows>(args, row, panel);
    }
    run_alone<SharedKernel, Rows>(args, row, panel);
    return 1;
  }

  template <int Rows>
  static __attribute__((noinline)) void sum(const IntegerArgs& args, int64_t row, int64_t panel, F16 (&sums)[Rows]) {
    SharedTile<Vbmi, Rows, Parts>(args, row, panel, sums).run();
  }

 private:
  template <int Rows>
  static __attribute__((noinline)) int64_t run_pair(const IntegerArgs& args, int64_t row, int64_t panel) {
    PairTile<Rows>(args, row, panel).run();
    return args.gated ? 1 : 2;
  }
};

/// NVFP4.
template <bool Vbmi, int Parts>
struct PairedKernel {
  static constexpr int kParts = Parts, kMaxRows = 12;

  static int max_rows(const IntegerArgs&) { return kMaxRows; }

  template <int Rows>
  static int64_t run(const IntegerArgs& args, int64_t row, int64_t panel, int64_t) {
    run_alone<PairedKernel, Rows>(args, row, panel);
    return 1;
  }

  template <int Rows>
  static void sum(const IntegerArgs& args, int64_t row, int64_t panel, F16 (&sums)[Rows]) {
    run_paired<Vbmi, Rows, Parts>(args, row, panel, sums);
  }
};

/// `num_rows` rows, at most MaxRows, of the panels.
template <class Kernel, int MaxRows>
void run_tile(const IntegerArgs& args, int64_t row, int64_t num_rows, int64_t panel, int64_t panel_end) {
  if (num_rows == MaxRows) {
    while (panel < panel_end) panel += Kernel::template run<MaxRows>(args, row, panel, panel_end);
  } else if constexpr (MaxRows > 1) {
    run_tile<Kernel, MaxRows - 1>(args, row, num_rows, panel, panel_end);
  }
}

template <class Kernel>
void run_panels(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t panel_bytes = static_cast<int64_t>(args.weight.panel_bytes) * (args.gated ? 2 : 1);
  for_each_tile(args.num_rows, Kernel::max_rows(args), panel_bytes, panel_begin, panel_end,
                [&](int64_t row, int64_t num_rows, int64_t panel, int64_t end) {
                  run_tile<Kernel, Kernel::kMaxRows>(args, row, num_rows, panel, end);
                });
}

template <bool Vbmi>
void run(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.weight.group_size == 32) {
    if (args.num_parts == 1) return run_panels<SharedKernel<Vbmi, 1>>(args, panel_begin, panel_end);
    return run_panels<SharedKernel<Vbmi, 2>>(args, panel_begin, panel_end);
  }
  if (args.num_parts == 1) return run_panels<PairedKernel<Vbmi, 1>>(args, panel_begin, panel_end);
  return run_panels<PairedKernel<Vbmi, 2>>(args, panel_begin, panel_end);
}

}  // namespace

void fp4_linear_integer(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  args.vbmi ? run<true>(args, panel_begin, panel_end) : run<false>(args, panel_begin, panel_end);
}

}  // namespace nybble::NYBBLE_ISA
