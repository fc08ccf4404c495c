// Attention and the KV cache over whole batches: checks, work units, threads.

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "aligned_buffer.h"
#include "index_checks.h"
#include "isa.h"
#include "ops.h"
#include "thread_pool.h"

namespace nybble {

void kv_write(const KvWriteArgs& args, std::int64_t num_rows) {
  check_indices("slots", args.slots, num_rows, args.cache.num_blocks * args.cache.block_size);
  const KernelTable& table = kernels();
  // Not parallel: two rows may name one slot, and then the later one has to win.
  table.kv_write(args, 0, num_rows);
}

namespace {

constexpr std::int64_t kMaxBlockSize = 256;
constexpr std::int64_t kMaxHeadsPerKvHead = 64;

void check_attention(const AttentionArgs& args, const AttentionBatch& batch) {
  const KvCache& cache = args.cache;
  if (cache.block_size > kMaxBlockSize) {
    throw std::invalid_argument("block_size must be at most 256, got " + std::to_string(cache.block_size));
  }
  if (args.num_heads % cache.num_kv_heads != 0 || args.num_heads / cache.num_kv_heads > kMaxHeadsPerKvHead) {
    throw std::invalid_argument("num_heads must be a multiple (at most 64 times) of num_kv_heads " +
                                std::to_string(cache.num_kv_heads) + ", got " + std::to_string(args.num_heads));
  }
  if (batch.query_starts[0] != 0 || batch.query_starts[batch.num_sequences] != batch.num_rows) {
    throw std::invalid_argument("query_starts must begin with 0 and end with the number of rows of q, " +
                                std::to_string(batch.num_rows));
  }
}

/// Work units of one sequence, after checking every block id they will read.
void plan_sequence(const AttentionArgs& args, const AttentionBatch& batch, std::int64_t sequence,
                   std::vector<AttentionUnit>& units) {
  const auto where = [&] { return std::string("[").append(std::to_string(sequence)).append("]"); };
  const std::int64_t first_row = batch.query_starts[sequence];
  const std::int64_t num_rows = batch.query_starts[sequence + 1] - first_row;
  const std::int64_t context = batch.context_lengths[sequence];
  const std::int64_t block_size = args.cache.block_size;
  if (num_rows < 0) throw std::invalid_argument("query_starts must not decrease, it does after" + where());
  if (num_rows == 0) return;
  if (context < num_rows || context > batch.max_blocks * block_size) {
    throw std::invalid_argument("context_lens" + where() + " is " + std::to_string(context) +
                                ", expected at least its " + std::to_string(num_rows) + " query rows and at most the " +
                                std::to_string(batch.max_blocks * block_size) + " positions its block table covers");
  }
  const std::int32_t* block_table = batch.block_tables + sequence * batch.max_blocks;
  const std::int64_t start = context - num_rows;
  const std::int64_t oldest = args.sliding_window > 0 ? std::max<std::int64_t>(0, start - args.sliding_window + 1) : 0;
  for (std::int64_t block = oldest / block_size; block <= (context - 1) / block_size; ++block) {
    if (block_table[block] < 0 || block_table[block] >= args.cache.num_blocks) {
      throw std::invalid_argument("block_tables" + where() + "[" + std::to_string(block) + "] is " +
                                  std::to_string(block_table[block]) + ", expected 0 <= value < " +
                                  std::to_string(args.cache.num_blocks));
    }
  }
  for (std::int64_t row = 0; row < num_rows; row += kAttentionUnitRows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kAttentionUnitRows, num_rows - row));
    units.push_back({first_row + row, start + row, rows, block_table});
  }
}

/// Keys, values and transposed keys of a block; queries, sums and scores of a unit's rows.
std::size_t attention_workspace_floats(const AttentionArgs& args) {
  const std::int64_t stride = (args.cache.head_dim + 15) / 16 * 16;
  const std::int64_t width = (args.cache.block_size + 15) / 16 * 16;
  const std::int64_t queries = kAttentionUnitRows * (args.num_heads / args.cache.num_kv_heads);
  return static_cast<std::size_t>(3 * stride * width + queries * (2 * stride + width));
}

}  // namespace

void paged_attention(const AttentionArgs& args, const AttentionBatch& batch) {
  check_attention(args, batch);
  std::vector<AttentionUnit> units;
  double cost = 0.0;
  for (std::int64_t sequence = 0; sequence < batch.num_sequences; ++sequence) {
    plan_sequence(args, batch, sequence, units);
  }
  for (const AttentionUnit& unit : units) cost += static_cast<double>((unit.first_position + 1) * unit.num_rows);
  const std::int64_t num_kv_heads = args.cache.num_kv_heads;
  const std::int64_t num_units = static_cast<std::int64_t>(units.size()) * num_kv_heads;
  if (num_units == 0) return;
  const std::size_t workspace_bytes = attention_workspace_floats(args) * sizeof(float);
  cost *= static_cast<double>(args.num_heads * args.cache.head_dim) / static_cast<double>(num_units);
  const KernelTable& table = kernels();
  // Heads vary fastest: neighbours read the same blocks, and late (long) rows spread over the threads.
  parallel_for(num_units, cost, [&](std::int64_t begin, std::int64_t end) {
    AlignedBuffer workspace(workspace_bytes);
    auto* floats = reinterpret_cast<float*>(workspace.data());
    for (std::int64_t i = begin; i < end; ++i) {
      table.attention(args, units[static_cast<std::size_t>(i / num_kv_heads)], i % num_kv_heads, floats);
    }
  });
}

}  // namespace nybble
