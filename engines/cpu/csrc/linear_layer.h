#pragma once
// A linear layer as a whole: how its input is brought to FP4, one product or several side by side, a bias.

#include <cstdint>
#include <functional>
#include <vector>

#include "ops.h"
#include "scratch.h"
#include "weights.h"

namespace nybble {

/// How the input of an FP4 weight is taken: as it is (W4A16), or in FP4 blocks (W4A4).
enum class InputFormat : int { kUnquantized = 0, kMxfp4 = 1, kNvfp4 = 2 };

struct InputQuantizer {
  InputFormat format;
  float input_scale;  // NVFP4 only
  bool modelopt;      // NVFP4 only
};

/// Shared by the layers of a model: they run one after the other.
struct LinearScratch {
  Scratch codes, scales, part;
};

/// Writes row `row` of a layer's input. Rows are written by any thread, each once.
using RowFunction = std::function<void(std::int64_t row)>;

class LinearLayer {
 public:
  /// Weights are borrowed; `bias` [rows of the weight] too, or null. Throws std::invalid_argument when the columns
  /// differ from those of earlier parts.
  void add_fp4(const Fp4Weight* weight, const InputQuantizer& quantizer, const float* bias);
  void add_dense(const DenseWeight* weight, const float* bias);

  std::int64_t num_rows() const { return num_rows_; }
  std::int64_t num_columns() const { return num_columns_; }

  /// out[num_rows, num_rows()] for an input [num_rows, num_columns()] that `fill` writes into `x`, row by row,
  /// while it is being quantized; `fill_cost` as in parallel_for. `next`, if known, is what is read
  /// afterwards: threads that wait fetch it.
  void run(const RowFunction& fill, double fill_cost, float* x, std::int64_t num_rows, float* out,
           LinearScratch& scratch, const UpcomingRead& next) const;

  /// Whether `run_gated` may be called: half of the outputs are gates, and the product itself can apply them.
  bool gates_outputs(std::int64_t num_rows) const;

  /// As `run`, out [num_rows, num_rows() / 2]: silu of the first half of the outputs times the second.
  void run_gated(const RowFunction& fill, double fill_cost, float* x, std::int64_t num_rows, float* out,
                 LinearScratch& scratch, const UpcomingRead& next) const;

  /// What the first product reads.
  UpcomingRead weights() const;

 private:
  struct Part {
    const Fp4Weight* fp4;
    const DenseWeight* dense;
    InputQuantizer quantizer;
    const float* bias;
    std::int64_t num_rows;

    bool quantizes() const { return fp4 != nullptr && quantizer.format != InputFormat::kUnquantized; }
  };
  void add(const Part& part, std::int64_t num_columns);
  void multiply_parts(const float* x, std::int64_t num_rows, float* out, LinearScratch& scratch,
                      const ProductContext& context) const;
  void add_biases(std::int64_t num_rows, float* out) const;
  void multiply(const Part& part, const float* x, std::int64_t num_rows, float* out, LinearScratch& scratch,
                const ProductContext& context) const;

  std::vector<Part> parts_;
  std::int64_t num_rows_ = 0;
  std::int64_t num_columns_ = 0;
};

}  // namespace nybble
