// FP4 weights times integer activations on VNNI: W4A4 (codes) and W4A16 (16-bit integers in two parts), any number of
// rows. The arithmetic is at the top of linear_w4a4.cpp and in integer_rows.h.
//
// Rows are cut into tiles whose sums stay in registers. What a tile adds to the time its products take, unpacking and
// scaling, is a tenth to a third; unpacking once for many tiles, into L1, was slower: its stores and loads cost as
// much.

#include "block_pairs_avx512.h"
#include "shared_rows_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int64_t kPanelsBytes = 512 << 10;  // of weights that stay in L2 while tile after tile passes over them

template <template <bool, int, int> class Tile, bool Vbmi, int MaxRows, int Parts>
void run_tile(const IntegerArgs& args, int64_t row, int64_t num_rows, int64_t panel) {
  if (num_rows == MaxRows) {
    Tile<Vbmi, MaxRows, Parts>::run(args, row, panel);
  } else if constexpr (MaxRows > 1) {
    run_tile<Tile, Vbmi, MaxRows - 1, Parts>(args, row, num_rows, panel);
  }
}

/// Tiles of at most MaxRows rows and of nearly equal size.
template <template <bool, int, int> class Tile, bool Vbmi, int MaxRows, int Parts>
void run_panels(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t step = max64(1, kPanelsBytes / static_cast<int64_t>(args.weight.panel_bytes));
  for (int64_t first = panel_begin; first < panel_end; first += step) {
    int64_t num_tiles = (args.num_rows + MaxRows - 1) / MaxRows;
    for (int64_t row = 0; row < args.num_rows; --num_tiles) {
      const int64_t num_rows = (args.num_rows - row + num_tiles - 1) / num_tiles;
      for (int64_t panel = first; panel < min64(first + step, panel_end); ++panel) {
        run_tile<Tile, Vbmi, MaxRows, Parts>(args, row, num_rows, panel);
      }
      row += num_rows;
    }
  }
}

template <bool Vbmi>
void run(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.weight.group_size == 32) {
    if (args.num_parts == 1) return run_panels<SharedRows, Vbmi, 24, 1>(args, panel_begin, panel_end);
    return run_panels<SharedRows, Vbmi, 12, 2>(args, panel_begin, panel_end);
  }
  if (args.num_parts == 1) return run_panels<PairedRows, Vbmi, 12, 1>(args, panel_begin, panel_end);
  return run_panels<PairedRows, Vbmi, 12, 2>(args, panel_begin, panel_end);
}

}  // namespace

void fp4_linear_integer(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  args.vbmi ? run<true>(args, panel_begin, panel_end) : run<false>(args, panel_begin, panel_end);
}

}  // namespace nybble::NYBBLE_ISA
