// Products over whole batches: activations into the layout of a kernel, panels over the threads.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "thread_pool.h"

namespace nybble {

namespace {

double row_cost(std::int64_t num_columns) { return static_cast<double>(num_columns); }

// A multiply-add in a vector lane costs a small part of an elementary operation.
double linear_cost(std::int64_t num_rows, std::int64_t num_columns) {
  return 1.0 * static_cast<double>(num_columns) * (1.0 + static_cast<double>(num_rows));
}

constexpr std::int64_t kTileRows = 32;  // a tile kernel reads whole tiles, past the last row as well

/// Room for the activations of one integer product, kept by the calling thread between calls.
class IntegerWorkspace {
 public:
  IntegerRows rows(std::int64_t num_rows, std::int64_t num_columns, int group_size, int num_parts) {
    num_slots_ = num_rows * ((num_columns + kSuperblockColumns - 1) / kSuperblockColumns);
    const std::int64_t num_blocks = num_slots_ * (kSuperblockColumns / group_size);
    // In the order of IntegerRows.
    const std::int64_t sizes[] = {(num_slots_ + kTileRows) * num_parts * kSuperblockColumns,
                                  num_slots_ * 4,
                                  num_slots_ * 4,
                                  num_slots_,
                                  num_blocks * 4,
                                  num_blocks * 4};
    std::size_t total = 0;
    for (const std::int64_t size : sizes) total += padded(size);
    auto* next = memory_.take<std::uint8_t>(static_cast<std::int64_t>(total));
    auto take = [&, i = 0](auto*& target) mutable {
      target = reinterpret_cast<std::remove_reference_t<decltype(target)>>(next);
      next += padded(sizes[i++]);
    };
    IntegerRows rows{};
    take(rows.codes);
    take(rows.scales);
    take(rows.biases);
    take(rows.regular);
    take(rows.block_biases);
    take(rows.block_scales);
    return rows;
  }
  bool all_regular(const IntegerRows& rows) const {
    return std::find(rows.regular, rows.regular + num_slots_, 0) == rows.regular + num_slots_;
  }

 private:
  static std::size_t padded(std::int64_t num_bytes) { return (static_cast<std::size_t>(num_bytes) + 63) / 64 * 64; }

  Scratch memory_;
  std::int64_t num_slots_ = 0;
};

IntegerWorkspace& integer_workspace() {
  thread_local IntegerWorkspace workspace;
  return workspace;
}

/// Activations of one product on bfloat16 tiles, kept by the calling thread between calls.
Bfloat16Rows bfloat16_rows(std::int64_t num_rows, std::int64_t num_columns) {
  thread_local Scratch tiles, fits;
  const std::int64_t num_elements = (num_rows + 15) / 16 * ((num_columns + 31) / 32) * 16 * 32;
  return {tiles.take<std::uint16_t>(num_elements), fits.take<std::uint8_t>(num_rows)};
}

/// Writes a product's rows and brings them into its layout, `prepare(begin, end)`, while a thread still has them in its
/// cache.
template <typename Prepare>
void prepare_rows(const ProductContext& context, std::int64_t num_rows, double row_cost, const Prepare& prepare) {
  parallel_for(num_rows, context.row_cost + row_cost, [&](std::int64_t begin, std::int64_t end) {
    if (context.write_rows) context.write_rows(begin, end);
    prepare(begin, end);
  });
  fetch_while_waiting(context.next);
}

void write_rows(const ProductContext& context, std::int64_t num_rows) {
  prepare_rows(context, num_rows, 0.0, [](std::int64_t, std::int64_t) {});
}

/// Activations as DenseArgs wants them, kept by the calling thread until the next call.
const float* dense_blocks(const float* x, std::int64_t num_rows, std::int64_t num_columns,
                          const ProductContext& context) {
  thread_local Scratch memory;
  const std::int64_t num_blocks = (num_columns + kDenseBlockColumns - 1) / kDenseBlockColumns;
  auto* blocks = memory.take<float>(num_blocks * num_rows * kDenseBlockColumns);
  prepare_rows(context, num_rows, row_cost(num_columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t k = 0; k < num_columns; k += kDenseBlockColumns) {
        const std::int64_t count = std::min<std::int64_t>(kDenseBlockColumns, num_columns - k);
        float* target = blocks + k * num_rows + row * kDenseBlockColumns;
        std::copy_n(x + row * num_columns + k, count, target);
        if (count % 2 != 0) target[count] = 0.0F;
      }
    }
  });
  return blocks;
}

bool has_bfloat16_tiles(const KernelTable& table, const Fp4Weight& weight) {
  return table.fp4_linear_bfloat16 != nullptr && weight.group_size() == 16 && weight.e4m3_scales();
}

/// NVFP4 on bfloat16 tiles; false, and nothing written, where they would not give the integer products' bits.
/// `fill(rows, begin, end)` writes the activations of a range of rows.
template <typename Fill>
bool linear_bfloat16(const KernelTable& table, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                     bool quantized, const ProductContext& context, const Fill& fill) {
  const Bfloat16Rows rows = bfloat16_rows(num_rows, weight.num_columns());
  prepare_rows(context, num_rows, row_cost(weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { fill(rows, begin, end); });
  if (std::find(rows.fits, rows.fits + num_rows, 0) != rows.fits + num_rows) return false;
  const Bfloat16Args args{weight.view(), rows, out, num_rows, quantized};
  // In pairs of panels, which share the loads of the activations.
  parallel_for((args.weight.num_panels + 1) / 2, 2.0 * linear_cost(num_rows, weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) {
                 table.fp4_linear_bfloat16(args, 2 * begin, std::min(2 * end, args.weight.num_panels));
               });
  return true;
}

/// Where there are tiles: up to this many rows (W4A4, or W4A16 in two parts) vectors are the faster ones. Predicted.
std::int64_t few_rows(int num_parts) { return 8 / num_parts; }

void run_integer(const KernelTable& table, const IntegerArgs& args) {
  const bool tiles =
      table.fp4_linear_tiles != nullptr && args.weight.group_size == 32 && args.num_rows > few_rows(args.num_parts);
  const auto linear = tiles ? table.fp4_linear_tiles : table.fp4_linear_integer;
  parallel_for(args.weight.num_panels, linear_cost(args.num_rows, args.weight.num_columns),
               [&](std::int64_t begin, std::int64_t end) { linear(args, begin, end); });
}

}  // namespace

void fp4_linear_w4a4(const std::int8_t* codes, const float* scales, const Fp4Weight& weight, std::int64_t num_rows,
                     float* out, const ProductContext& context) {
  fp4_linear_w4a4(kernels(), codes, scales, weight, num_rows, out, context);
}

void fp4_linear_w4a4(const KernelTable& table, const std::int8_t* codes, const float* scales, const Fp4Weight& weight,
                     std::int64_t num_rows, float* out, const ProductContext& context) {
  if (num_rows == 0) return;
  if (table.fp4_linear_integer != nullptr) {
    const W4A4Args args{weight.view(), codes, scales, nullptr, out, num_rows};
    const bool tiles = num_rows > few_rows(1) && has_bfloat16_tiles(table, weight);
    if (tiles && linear_bfloat16(table, weight, num_rows, out, true, context,
                                 [&](const Bfloat16Rows& rows, std::int64_t begin, std::int64_t end) {
                                   table.tile_rows_w4a4(args, rows, begin, end);
                                 })) {
      return;
    }
    IntegerWorkspace& workspace = integer_workspace();
    const IntegerRows rows = workspace.rows(num_rows, weight.num_columns(), weight.group_size(), 1);
    prepare_rows(tiles ? context.written() : context, num_rows, row_cost(weight.num_columns()),
                 [&](std::int64_t begin, std::int64_t end) { table.prepare_w4a4(args, rows, begin, end); });
    return run_integer(table, {weight.view(), rows, codes, out, num_rows, 1, workspace.all_regular(rows), table.vbmi});
  }
  write_rows(context, num_rows);
  const std::int64_t num_blocks = num_rows * (weight.num_columns() / weight.group_size());
  std::vector<std::int32_t> biases(static_cast<std::size_t>(num_blocks));
  table.w4a4_biases(codes, num_blocks, weight.group_size(), biases.data());
  const W4A4Args args{weight.view(), codes, scales, biases.data(), out, num_rows};
  parallel_for(args.weight.num_panels, linear_cost(num_rows, weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { table.fp4_linear_w4a4(args, begin, end); });
}

void fp4_linear_w4a16(const float* x, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                      const ProductContext& context) {
  fp4_linear_w4a16(kernels(), x, weight, num_rows, out, context);
}

void fp4_linear_w4a16(const KernelTable& table, const float* x, const Fp4Weight& weight, std::int64_t num_rows,
                      float* out, const ProductContext& context) {
  if (num_rows == 0) return;
  if (table.fp4_linear_integer == nullptr) return fp4_linear_f32(x, weight, num_rows, out, context);
  const Fp4F32Args args{weight.view(), x, out, num_rows};
  const bool tiles = num_rows > few_rows(2) && has_bfloat16_tiles(table, weight);
  if (tiles && linear_bfloat16(table, weight, num_rows, out, false, context,
                               [&](const Bfloat16Rows& rows, std::int64_t begin, std::int64_t end) {
                                 table.tile_rows_w4a16(args, rows, begin, end);
                               })) {
    return;
  }
  const IntegerRows rows = integer_workspace().rows(num_rows, weight.num_columns(), weight.group_size(), 2);
  prepare_rows(tiles ? context.written() : context, num_rows, row_cost(weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { table.prepare_w4a16(args, rows, begin, end); });
  run_integer(table, {weight.view(), rows, nullptr, out, num_rows, 2, true, table.vbmi});
}

void fp4_linear_f32(const float* x, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                    const ProductContext& context) {
  write_rows(context, num_rows);
  const KernelTable& table = kernels();
  const Fp4F32Args args{weight.view(), x, out, num_rows};
  parallel_for(args.weight.num_panels, linear_cost(num_rows, weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { table.fp4_linear_f32(args, begin, end); });
}

void dense_linear(const float* x, const DenseWeight& weight, std::int64_t num_rows, float* out,
                  const ProductContext& context) {
  if (num_rows == 0) return;
  const KernelTable& table = kernels();
  const DenseArgs args{weight.view(), dense_blocks(x, num_rows, weight.num_columns(), context), out, num_rows};
  const std::int64_t group_rows = kDenseGroupPanels * kPanelRows;
  const std::int64_t num_groups = (weight.num_rows() + group_rows - 1) / group_rows;
  parallel_for(num_groups, kDenseGroupPanels * linear_cost(num_rows, weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { table.dense_linear(args, begin, end); });
}

}  // namespace nybble
