#include "ops.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "index_checks.h"
#include "isa.h"
#include "thread_pool.h"

namespace nybble {

namespace {

double row_cost(std::int64_t num_columns) { return static_cast<double>(num_columns); }

}  // namespace

void quantize_mxfp4(const QuantizeArgs& args, std::int64_t num_rows) {
  const KernelTable& table = kernels();
  parallel_for(num_rows, row_cost(args.num_columns),
               [&](std::int64_t begin, std::int64_t end) { table.quantize_mxfp4(args, begin, end); });
}

void quantize_nvfp4(const QuantizeArgs& args, std::int64_t num_rows) {
  const KernelTable& table = kernels();
  parallel_for(num_rows, row_cost(args.num_columns),
               [&](std::int64_t begin, std::int64_t end) { table.quantize_nvfp4(args, begin, end); });
}

void rms_norm(const RmsNormArgs& args, std::int64_t num_rows) {
  const KernelTable& table = kernels();
  parallel_for(num_rows, row_cost(args.num_columns),
               [&](std::int64_t begin, std::int64_t end) { table.rms_norm(args, begin, end); });
}

void rope(const RopeArgs& args, std::int64_t num_rows, std::int64_t num_positions) {
  check_indices("positions", args.positions, num_rows, num_positions);
  const KernelTable& table = kernels();
  parallel_for(num_rows, row_cost(args.num_heads * args.head_dim),
               [&](std::int64_t begin, std::int64_t end) { table.rope(args, begin, end); });
}

void silu_mul(const SiluMulArgs& args, std::int64_t num_rows) {
  const KernelTable& table = kernels();
  parallel_for(num_rows, 2.0 * row_cost(args.num_columns),
               [&](std::int64_t begin, std::int64_t end) { table.silu_mul(args, begin, end); });
}

void embed(const std::int32_t* token_ids, std::int64_t num_rows, const void* table_data, ElementType element_type,
           std::int64_t num_tokens, std::int64_t num_columns, float* out) {
  check_indices("token_ids", token_ids, num_rows, num_tokens);
  const KernelTable& table = kernels();
  const std::int64_t row_bytes = num_columns * (element_type == ElementType::kFloat32 ? 4 : 2);
  parallel_for(num_rows, row_cost(num_columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const auto* source = static_cast<const std::uint8_t*>(table_data) + token_ids[row] * row_bytes;
      table.to_float32(source, element_type, num_columns, out + row * num_columns);
    }
  });
}

void likeliest_tokens(const float* logits, std::int64_t num_rows, std::int64_t num_tokens, std::int64_t* ids) {
  constexpr std::int64_t kPiece = 4096;  // a row too is shared out
  const KernelTable& table = kernels();
  const std::int64_t num_pieces = (num_tokens + kPiece - 1) / kPiece;
  std::vector<LogitsPeak> peaks(static_cast<std::size_t>(num_rows * num_pieces));  // [pieces][rows]
  parallel_for(num_rows * num_pieces, row_cost(kPiece), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = i / num_rows * kPiece;
      LogitsPeak& peak = peaks[static_cast<std::size_t>(i)];
      peak = table.logits_peak(logits + i % num_rows * num_tokens + first,
                               std::min<std::int64_t>(kPiece, num_tokens - first));
      peak.token_id += first;
    }
  });
  for (std::int64_t row = 0; row < num_rows; ++row) {
    LogitsPeak largest = peaks[static_cast<std::size_t>(row)];
    for (std::int64_t piece = 1; piece < num_pieces; ++piece) {
      const LogitsPeak& peak = peaks[static_cast<std::size_t>(piece * num_rows + row)];
      const bool all_finite = largest.all_finite && peak.all_finite;
      if (peak.logit > largest.logit) largest = peak;
      largest.all_finite = all_finite;
    }
    ids[row] = largest.all_finite ? largest.token_id : kNotFinite;
  }
}

void route_top_k(const float* logits, std::int64_t num_rows, std::int64_t num_experts, std::int64_t k,
                 std::int32_t* ids, float* weights) {
  if (k < 1 || k > num_experts) {
    throw std::invalid_argument("k must be between 1 and the number of experts " + std::to_string(num_experts) +
                                ", got " + std::to_string(k));
  }
  const KernelTable& table = kernels();
  std::vector<float> probabilities(static_cast<std::size_t>(num_experts));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    table.softmax_row(logits + row * num_experts, num_experts, probabilities.data());
    float total = 0.0F;
    for (std::int64_t slot = 0; slot < k; ++slot) {
      std::int64_t best = -1;
      for (std::int64_t expert = 0; expert < num_experts; ++expert) {
        const float p = probabilities[static_cast<std::size_t>(expert)];
        if (p < 0.0F) continue;  // taken
        // A NaN row still yields distinct, valid ids: nothing compares greater, so the lowest free ones are taken.
        if (best < 0 || p > probabilities[static_cast<std::size_t>(best)]) best = expert;
      }
      ids[row * k + slot] = static_cast<std::int32_t>(best);
      weights[row * k + slot] = probabilities[static_cast<std::size_t>(best)];
      total += weights[row * k + slot];
      probabilities[static_cast<std::size_t>(best)] = -1.0F;
    }
    for (std::int64_t slot = 0; slot < k; ++slot) weights[row * k + slot] /= total;
  }
}

void gather_rows(const float* x, std::int64_t num_x_rows, const std::int64_t* rows, std::int64_t num_rows,
                 std::int64_t num_columns, float* out) {
  check_indices("rows", rows, num_rows, num_x_rows);
  for (std::int64_t i = 0; i < num_rows; ++i) {
    std::copy_n(x + rows[i] * num_columns, num_columns, out + i * num_columns);
  }
}

void scatter_add_rows(const float* y, const std::int64_t* rows, const float* weights, std::int64_t num_rows,
                      std::int64_t num_columns, float* out, std::int64_t num_out_rows) {
  check_indices("rows", rows, num_rows, num_out_rows);
  const KernelTable& table = kernels();
  for (std::int64_t i = 0; i < num_rows; ++i) {
    table.add_scaled(y + i * num_columns, weights[i], num_columns, out + rows[i] * num_columns);
  }
}

}  // namespace nybble
