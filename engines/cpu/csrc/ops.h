#pragma once
// Kernels over whole batches: checks what an index could break, then spreads the work over the threads.

#include <cstdint>

#include "kernel_table.h"
#include "thread_pool.h"
#include "weights.h"

namespace nybble {

/// What surrounds a product.
struct ProductContext {
  RangeFunction write_rows;  // writes rows [begin, end) of the input, ahead of all that reads them; may be empty
  double row_cost = 0.0;     // of writing one, as in parallel_for
  UpcomingRead next;         // what threads fetch that wait, from the product on; empty if unknown
  bool gated = false;        // the product is [num_rows, N / 2]: silu of the first half of its columns times the second

  ProductContext written() const { return {nullptr, 0.0, next, gated}; }
};

/// Whether a product may be asked to be `gated`: it saves writing and reading it once. `quantized` as in W4A4.
bool gates_outputs(const Fp4Weight& weight, std::int64_t num_rows, bool quantized);

/// Both with the table in use, or with one that is given (to compare two).
void fp4_linear_w4a4(const std::int8_t* codes, const float* scales, const Fp4Weight& weight, std::int64_t num_rows,
                     float* out, const ProductContext& context = {});
void fp4_linear_w4a4(const KernelTable& table, const std::int8_t* codes, const float* scales, const Fp4Weight& weight,
                     std::int64_t num_rows, float* out, const ProductContext& context = {});
/// Activations as 16-bit integers per 128 columns where the instruction set has integer products, else float32.
void fp4_linear_w4a16(const float* x, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                      const ProductContext& context = {});
void fp4_linear_w4a16(const KernelTable& table, const float* x, const Fp4Weight& weight, std::int64_t num_rows,
                      float* out, const ProductContext& context = {});
void fp4_linear_f32(const float* x, const Fp4Weight& weight, std::int64_t num_rows, float* out,
                    const ProductContext& context = {});
void dense_linear(const float* x, const DenseWeight& weight, std::int64_t num_rows, float* out,
                  const ProductContext& context = {});

void quantize_mxfp4(const QuantizeArgs& args, std::int64_t num_rows);
void quantize_nvfp4(const QuantizeArgs& args, std::int64_t num_rows);
void rms_norm(const RmsNormArgs& args, std::int64_t num_rows);
/// Throws std::invalid_argument for a position outside [0, num_positions).
void rope(const RopeArgs& args, std::int64_t num_rows, std::int64_t num_positions);
void silu_mul(const SiluMulArgs& args, std::int64_t num_rows);
/// Throws std::invalid_argument for a token id outside [0, num_tokens).
void embed(const std::int32_t* token_ids, std::int64_t num_rows, const void* table, ElementType element_type,
           std::int64_t num_tokens, std::int64_t num_columns, float* out);

/// Throws std::invalid_argument for a slot outside the cache.
void kv_write(const KvWriteArgs& args, std::int64_t num_rows);

struct AttentionBatch {
  std::int64_t num_rows;
  std::int64_t num_sequences;
  std::int64_t max_blocks;              // columns of block_tables
  const std::int32_t* block_tables;     // [num_sequences, max_blocks]
  const std::int32_t* query_starts;     // [num_sequences + 1]
  const std::int32_t* context_lengths;  // [num_sequences]
};
/// Throws std::invalid_argument before reading through a bad index.
void paged_attention(const AttentionArgs& args, const AttentionBatch& batch);

constexpr std::int64_t kNotFinite = -1;
/// The column of each row's largest number, the first of equal ones; kNotFinite for a row in which one is not finite.
/// num_tokens > 0.
void likeliest_tokens(const float* logits, std::int64_t num_rows, std::int64_t num_tokens, std::int64_t* ids);

/// Softmax over the columns, the k largest (ties to the lower index), renormalised to sum 1.
void route_top_k(const float* logits, std::int64_t num_rows, std::int64_t num_experts, std::int64_t k,
                 std::int32_t* ids, float* weights);
/// out[i] = x[rows[i]]. Throws std::invalid_argument.
void gather_rows(const float* x, std::int64_t num_x_rows, const std::int64_t* rows, std::int64_t num_rows,
                 std::int64_t num_columns, float* out);
/// out[rows[i]] += weights[i] * y[i], in ascending i. Throws std::invalid_argument.
void scatter_add_rows(const float* y, const std::int64_t* rows, const float* weights, std::int64_t num_rows,
                      std::int64_t num_columns, float* out, std::int64_t num_out_rows);

}  // namespace nybble
