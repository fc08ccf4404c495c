#pragma once
// Products on AMX tiles: when, and NVFP4's on bfloat16 tiles.

#include <functional>

#include "kernel_table.h"
#include "ops.h"

namespace nybble {

/// Where there are tiles: up to this many rows (W4A4, or W4A16 in two parts) vectors are the faster ones. Predicted.
constexpr std::int64_t few_rows(int num_parts) { return 8 / num_parts; }

bool has_bfloat16_tiles(const KernelTable& table, const Fp4Weight& weight, bool quantized);
bool has_integer_tiles(const KernelTable& table, int group_size);

/// Whether a kernel applies the gates of a product itself.
bool applies_gates(const KernelTable& table, const Fp4Weight& weight, std::int64_t num_rows, bool quantized);

/// Writes the activations of rows [begin, end).
using FillTiles = std::function<void(const Bfloat16Rows& rows, std::int64_t begin, std::int64_t end)>;

/// NVFP4 on bfloat16 tiles; false, and nothing written, where they would not give the integer products' bits.
bool linear_bfloat16(const KernelTable& table, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                     bool quantized, const ProductContext& context, const FillTiles& fill);

}  // namespace nybble
