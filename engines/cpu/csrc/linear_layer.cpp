#include "linear_layer.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "ops.h"
#include "thread_pool.h"

namespace nybble {

namespace {

/// Codes and scales of an input in FP4 blocks, both written row by row.
struct QuantizedRows {
  std::int8_t* codes;
  float* scales;
  std::int64_t num_columns;
  std::int64_t num_blocks;  // in a row

  QuantizedRows(std::int64_t num_rows, std::int64_t columns, int group_size, LinearScratch& scratch)
      : codes(scratch.codes.take<std::int8_t>(num_rows * columns)),
        scales(scratch.scales.take<float>(num_rows * (columns / group_size))),
        num_columns(columns),
        num_blocks(columns / group_size) {}

  void quantize(const KernelTable& table, const InputQuantizer& quantizer, const float* x, std::int64_t row) const {
    const QuantizeArgs args{x, codes, scales, num_columns, quantizer.input_scale, quantizer.modelopt};
    if (quantizer.format == InputFormat::kMxfp4) {
      table.quantize_mxfp4(args, row, row + 1);
    } else {
      table.quantize_nvfp4(args, row, row + 1);
    }
  }
};

ProductContext context_of(const RowFunction& fill, double fill_cost, const UpcomingRead& next) {
  ProductContext context;
  context.write_rows = [&fill](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) fill(row);
  };
  context.row_cost = fill_cost;
  context.next = next;
  return context;
}

}  // namespace

void LinearLayer::add_fp4(const Fp4Weight* weight, const InputQuantizer& quantizer, const float* bias) {
  add({weight, nullptr, quantizer, bias, weight->num_rows()}, weight->num_columns());
}

void LinearLayer::add_dense(const DenseWeight* weight, const float* bias) {
  add({nullptr, weight, {}, bias, weight->num_rows()}, weight->num_columns());
}

void LinearLayer::add(const Part& part, std::int64_t num_columns) {
  if (!parts_.empty() && num_columns != num_columns_) {
    throw std::invalid_argument("the parts of a linear layer must have the same columns, got " +
                                std::to_string(num_columns) + " beside " + std::to_string(num_columns_));
  }
  parts_.push_back(part);
  num_columns_ = num_columns;
  num_rows_ += part.num_rows;
}

void LinearLayer::run(const RowFunction& fill, double fill_cost, float* x, std::int64_t num_rows, float* out,
                      LinearScratch& scratch, const UpcomingRead& next) const {
  multiply_parts(x, num_rows, out, scratch, context_of(fill, fill_cost, next));
  add_biases(num_rows, out);
}

bool LinearLayer::gates_outputs(std::int64_t num_rows) const {
  if (parts_.size() != 1 || parts_[0].fp4 == nullptr || parts_[0].bias != nullptr) return false;
  return nybble::gates_outputs(*parts_[0].fp4, num_rows, parts_[0].quantizes());
}

void LinearLayer::run_gated(const RowFunction& fill, double fill_cost, float* x, std::int64_t num_rows, float* out,
                            LinearScratch& scratch, const UpcomingRead& next) const {
  ProductContext context = context_of(fill, fill_cost, next);
  context.gated = true;
  multiply(parts_[0], x, num_rows, out, scratch, context);
}

UpcomingRead LinearLayer::weights() const {
  const Part& first = parts_[0];
  return first.fp4 != nullptr ? first.fp4->panels() : first.dense->groups();
}

void LinearLayer::multiply_parts(const float* x, std::int64_t num_rows, float* out, LinearScratch& scratch,
                                 const ProductContext& context) const {
  if (parts_.size() == 1) return multiply(parts_[0], x, num_rows, out, scratch, context);
  std::int64_t start = 0;
  for (const Part& part : parts_) {
    float* part_out = scratch.part.take<float>(num_rows * part.num_rows);
    multiply(part, x, num_rows, part_out, scratch, start == 0 ? context : context.written());
    for (std::int64_t row = 0; row < num_rows; ++row) {
      std::copy_n(part_out + row * part.num_rows, part.num_rows, out + row * num_rows_ + start);
    }
    start += part.num_rows;
  }
}

void LinearLayer::add_biases(std::int64_t num_rows, float* out) const {
  std::int64_t start = 0;
  for (const Part& part : parts_) {
    for (std::int64_t row = 0; part.bias != nullptr && row < num_rows; ++row) {
      for (std::int64_t i = 0; i < part.num_rows; ++i) out[row * num_rows_ + start + i] += part.bias[i];
    }
    start += part.num_rows;
  }
}

void LinearLayer::multiply(const Part& part, const float* x, std::int64_t num_rows, float* out, LinearScratch& scratch,
                           const ProductContext& context) const {
  if (part.dense != nullptr) return dense_linear(x, *part.dense, num_rows, out, context);
  if (!part.quantizes()) return fp4_linear_w4a16(x, *part.fp4, num_rows, out, context);
  const KernelTable& table = kernels();
  const QuantizedRows rows(num_rows, num_columns_, part.fp4->group_size(), scratch);
  ProductContext quantizing = context;
  quantizing.row_cost += static_cast<double>(num_columns_);
  quantizing.write_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      if (context.write_rows) context.write_rows(row, row + 1);
      rows.quantize(table, part.quantizer, x, row);  // still in this thread's cache
    }
  };
  fp4_linear_w4a4(rows.codes, rows.scales, *part.fp4, num_rows, out, quantizing);
}

}  // namespace nybble
