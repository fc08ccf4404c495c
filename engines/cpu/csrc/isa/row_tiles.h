#pragma once
// Rows of a product cut into tiles whose sums stay in registers, over panels of weights that stay in L2 meanwhile.

#include "kernels.h"

namespace nybble::NYBBLE_ISA {

constexpr int64_t kPanelsBytes = 512 << 10;  // of weights, while tile after tile passes over them

/// Calls run(first row, number of rows, first panel, last panel) for tiles of nearly equal size, at most `max_rows`.
template <typename Run>
inline void for_each_tile(int64_t num_rows, int64_t max_rows, int64_t panel_bytes, int64_t panel_begin,
                          int64_t panel_end, const Run& run) {
  const int64_t step = max64(1, kPanelsBytes / panel_bytes);
  for (int64_t first = panel_begin; first < panel_end; first += step) {
    int64_t num_tiles = (num_rows + max_rows - 1) / max_rows;
    for (int64_t row = 0; row < num_rows; --num_tiles) {
      const int64_t tile_rows = (num_rows - row + num_tiles - 1) / num_tiles;
      run(row, tile_rows, first, min64(first + step, panel_end));
      row += tile_rows;
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
