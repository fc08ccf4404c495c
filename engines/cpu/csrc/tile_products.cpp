#include "tile_products.h"

#include <algorithm>

#include "integer_workspace.h"
#include "product_rows.h"
#include "scratch.h"

namespace nybble {

namespace {

constexpr std::int64_t kGroupsPerThread = 2;

// Fewer wait for weights from memory, which are to come in the order they lie: gates and the others are two streams.
constexpr std::int64_t kGatedRows = 32;

/// Activations of one product on bfloat16 tiles, kept by the calling thread between calls.
Bfloat16Rows bfloat16_rows(std::int64_t num_rows, std::int64_t num_columns) {
  thread_local Scratch tiles, fits;
  const std::int64_t num_tiles = div_up(num_rows, kTileRows);
  const std::int64_t num_ranges = div_up(num_columns, kTileRangeColumns);
  const std::int64_t stride = slot_stride(num_rows);
  const std::int64_t num_elements = num_ranges * std::max(num_tiles * kTileRows, stride) * kTileRangeColumns;
  return {tiles.take<std::uint16_t>(num_elements), fits.take<std::uint8_t>(num_rows), num_tiles, stride};
}

/// Panels that pass over the activations together: many, as each group reads them anew; a few groups for each thread.
std::int64_t tile_group_panels(std::int64_t num_panels) {
  const std::int64_t fair = num_panels / (kGroupsPerThread * num_threads());
  return std::clamp<std::int64_t>(fair / 2 * 2, 2, kTileGroupPanels);
}

/// The second half of the outputs lies as the first does.
bool has_halves(const Fp4View& weight) {
  const std::int64_t half = weight.num_panels / 2;
  if (weight.num_panels % 2 != 0 || weight.num_rows % 2 != 0) return false;
  for (std::int64_t i = 0; i < half; ++i) {
    const Fp4Panel &first = weight.panels[i], &second = weight.panels[half + i];
    if (second.first_output != weight.num_rows / 2 + first.first_output || second.num_lanes != first.num_lanes) {
      return false;
    }
  }
  return true;
}

}  // namespace

bool has_bfloat16_tiles(const KernelTable& table, const Fp4Weight& weight, bool quantized) {
  const bool has_rows = quantized ? table.tile_rows_w4a4 != nullptr : table.tile_rows_w4a16 != nullptr;
  return has_rows && table.fp4_linear_bfloat16 != nullptr && weight.group_size() == 16 && weight.e4m3_scales();
}

bool has_integer_tiles(const KernelTable& table, int group_size) {
  return table.fp4_linear_tiles != nullptr && group_size == 32;
}

bool applies_gates(const KernelTable& table, const Fp4Weight& weight, std::int64_t num_rows, bool quantized) {
  const bool has_tiles = has_bfloat16_tiles(table, weight, quantized) || has_integer_tiles(table, weight.group_size());
  const int num_parts = quantized ? 1 : 2;
  const bool in_pairs = takes_pairs(table.reading, weight.view(), num_rows, num_parts);
  const bool in_two = num_rows >= kGatedRows && table.fp4_linear_integer != nullptr;
  return ((num_rows > few_rows(num_parts) && has_tiles) || in_pairs || in_two) && has_halves(weight.view());
}

bool linear_bfloat16(const KernelTable& table, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                     bool quantized, const ProductContext& context, const FillTiles& fill) {
  const Bfloat16Rows rows = bfloat16_rows(num_rows, weight.num_columns());
  prepare_rows(context, num_rows, row_cost(weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { fill(rows, begin, end); });
  if (std::find(rows.fits, rows.fits + num_rows, 0) != rows.fits + num_rows) return false;
  const Bfloat16Args args{weight.view(), rows, out, num_rows, quantized, context.gated};
  const std::int64_t panels_a_place = context.gated ? 2 : 1, num_places = args.weight.num_panels / panels_a_place;
  const std::int64_t group = tile_group_panels(args.weight.num_panels) / panels_a_place;
  parallel_for(div_up(num_places, group),
               static_cast<double>(group * panels_a_place) * linear_cost(num_rows, weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) {
                 thread_local Scratch sums;
                 auto* memory = sums.take<float>(kTileGroupBytes / 4);
                 for (std::int64_t first = begin * group; first < std::min(end * group, num_places); first += group) {
                   table.fp4_linear_bfloat16(args, first, std::min(first + group, num_places), memory);
                 }
               });
  return true;
}

}  // namespace nybble
