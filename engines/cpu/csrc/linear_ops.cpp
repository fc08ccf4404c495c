// Products over whole batches: activations into the layout of a kernel, panels over the threads.

#include <algorithm>
#include <vector>

#include "integer_workspace.h"
#include "isa.h"
#include "product_rows.h"
#include "scratch.h"
#include "tile_products.h"

namespace nybble {

namespace {

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

/// A gated product whose kernel does not do it: `run` is the product without.
template <typename Run>
void gate_afterwards(const Fp4Weight& weight, std::int64_t num_rows, float* out, const ProductContext& context,
                     const Run& run) {
  thread_local Scratch memory;
  auto* product = memory.take<float>(num_rows * weight.num_rows());
  ProductContext plain = context;
  plain.gated = false;
  run(product, plain);
  silu_mul({product, out, weight.num_rows() / 2}, num_rows);
}

void run_integer(const KernelTable& table, const IntegerArgs& args) {
  const bool tiles = args.num_rows > few_rows(args.num_parts) && has_integer_tiles(table, args.weight.group_size);
  const auto linear = tiles ? table.fp4_linear_tiles : table.fp4_linear_integer;
  const std::int64_t panels_a_place = args.gated ? 2 : 1;
  parallel_for(args.weight.num_panels / panels_a_place,
               static_cast<double>(panels_a_place) * linear_cost(args.num_rows, args.weight.num_columns),
               [&](std::int64_t begin, std::int64_t end) { linear(args, begin, end); });
}

}  // namespace

bool gates_outputs(const Fp4Weight& weight, std::int64_t num_rows, bool quantized) {
  return applies_gates(kernels(), weight, num_rows, quantized);
}

void fp4_linear_w4a4(const std::int8_t* codes, const float* scales, const Fp4Weight& weight, std::int64_t num_rows,
                     float* out, const ProductContext& context) {
  fp4_linear_w4a4(kernels(), codes, scales, weight, num_rows, out, context);
}

void fp4_linear_w4a4(const KernelTable& table, const std::int8_t* codes, const float* scales, const Fp4Weight& weight,
                     std::int64_t num_rows, float* out, const ProductContext& context) {
  if (num_rows == 0) return;
  const auto gate = [&](const ProductContext& rest) {
    gate_afterwards(weight, num_rows, out, rest, [&](float* product, const ProductContext& plain) {
      fp4_linear_w4a4(table, codes, scales, weight, num_rows, product, plain);
    });
  };
  if (context.gated && !applies_gates(table, weight, num_rows, true)) return gate(context);
  if (table.fp4_linear_integer != nullptr) {
    const W4A4Args args{weight.view(), codes, scales, nullptr, out, num_rows};
    const bool tiles = num_rows > few_rows(1) && has_bfloat16_tiles(table, weight, true);
    if (tiles && linear_bfloat16(table, weight, num_rows, out, true, context,
                                 [&](const Bfloat16Rows& rows, std::int64_t begin, std::int64_t end) {
                                   table.tile_rows_w4a4(args, rows, begin, end);
                                 })) {
      return;
    }
    if (context.gated && tiles) return gate(context.written());
    IntegerWorkspace& workspace = integer_workspace();
    const IntegerRows rows = workspace.rows(num_rows, weight.num_columns(), weight.group_size(), 1);
    prepare_rows(tiles ? context.written() : context, num_rows, row_cost(weight.num_columns()),
                 [&](std::int64_t begin, std::int64_t end) { table.prepare_w4a4(args, rows, begin, end); });
    return run_integer(table, {weight.view(), rows, codes, out, num_rows, 1, workspace.all_regular(rows), table.vbmi,
                               table.reading, context.gated});
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
  const auto gate = [&](const ProductContext& rest) {
    gate_afterwards(weight, num_rows, out, rest, [&](float* product, const ProductContext& plain) {
      fp4_linear_w4a16(table, x, weight, num_rows, product, plain);
    });
  };
  if (context.gated && !applies_gates(table, weight, num_rows, false)) return gate(context);
  if (table.fp4_linear_integer == nullptr) return fp4_linear_f32(x, weight, num_rows, out, context);
  const Fp4F32Args args{weight.view(), x, out, num_rows};
  const bool tiles = num_rows > few_rows(2) && has_bfloat16_tiles(table, weight, false);
  if (tiles && linear_bfloat16(table, weight, num_rows, out, false, context,
                               [&](const Bfloat16Rows& rows, std::int64_t begin, std::int64_t end) {
                                 table.tile_rows_w4a16(args, rows, begin, end);
                               })) {
    return;
  }
  if (context.gated && tiles) return gate(context.written());
  const IntegerRows rows = integer_workspace().rows(num_rows, weight.num_columns(), weight.group_size(), 2);
  prepare_rows(tiles ? context.written() : context, num_rows, row_cost(weight.num_columns()),
               [&](std::int64_t begin, std::int64_t end) { table.prepare_w4a16(args, rows, begin, end); });
  run_integer(table, {weight.view(), rows, nullptr, out, num_rows, 2, true, table.vbmi, table.reading, context.gated});
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
