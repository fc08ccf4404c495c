// Attention and the KV cache over whole batches: checks, work units, threads.

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention_layout.h"
#include "index_checks.h"
#include "isa.h"
#include "ops.h"
#include "scratch.h"
#include "thread_pool.h"

namespace nybble {

void kv_write(const KvWriteArgs& args, std::int64_t num_rows) {
  check_indices("slots", args.slots, num_rows, args.cache.num_blocks * args.cache.block_size);
  const KernelTable& table = kernels();
  // By head, not by row: two rows may name one slot, and then the later one has to win.
  parallel_for(args.cache.num_kv_heads, static_cast<double>(2 * num_rows * args.cache.head_dim),
               [&](std::int64_t begin, std::int64_t end) { table.kv_write(args, num_rows, begin, end); });
}

namespace {

constexpr std::int64_t kMaxBlockSize = 256;

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
  const std::int64_t group = args.num_heads / args.cache.num_kv_heads;
  const std::int64_t unit_rows = std::max<std::int64_t>(1, kAttentionUnitQueries / group);
  for (std::int64_t row = 0; row < num_rows; row += unit_rows) {
    const int rows = static_cast<int>(std::min(unit_rows, num_rows - row));
    units.push_back({first_row + row, start + row, rows, block_table});
  }
}

struct Partitions {
  std::int64_t first, last;
};

Partitions partitions_of(const AttentionArgs& args, const AttentionUnit& unit) {
  const std::int64_t window = args.sliding_window;
  const std::int64_t oldest = window > 0 ? std::max<std::int64_t>(0, unit.first_position - window + 1) : 0;
  return {oldest / kAttentionPartitionKeys, (unit.first_position + unit.num_rows - 1) / kAttentionPartitionKeys + 1};
}

/// Positions a unit reads, times its rows.
std::int64_t unit_cost(const AttentionArgs& args, const AttentionUnit& unit) {
  const std::int64_t positions = unit.first_position + unit.num_rows;
  return unit.num_rows *
         (args.sliding_window > 0 ? std::min(positions, args.sliding_window + unit.num_rows) : positions);
}

/// A thread's scratch and state for one unit, kept between calls.
float* thread_workspace(std::int64_t num_floats) {
  thread_local Scratch memory;
  return memory.take<float>(num_floats);
}

/// One attention call's units, spread over the threads.
class AttentionRun {
 public:
  AttentionRun(const AttentionArgs& args, std::vector<AttentionUnit> units) : args_(args), units_(std::move(units)) {
    // Long units first: the threads then end together.
    std::stable_sort(units_.begin(), units_.end(), [&](const AttentionUnit& a, const AttentionUnit& b) {
      return unit_cost(args, a) > unit_cost(args, b);
    });
    int rows = 0;
    for (const AttentionUnit& unit : units_) {
      rows = std::max(rows, unit.num_rows);
      cost_ += static_cast<double>(unit_cost(args, unit) * args.num_heads * args.cache.head_dim);
    }
    const std::int64_t queries = rows * (args.num_heads / args.cache.num_kv_heads);
    const std::int64_t stride = round_up_to_lanes(args.cache.head_dim);
    scratch_floats_ = AttentionScratch::floats(queries, stride);
    state_floats_ = AttentionState::floats(queries, stride);
  }

  void run() {
    const std::int64_t num_items = static_cast<std::int64_t>(units_.size()) * args_.cache.num_kv_heads;
    // Fewer items than threads can share out evenly: the partitions become items.
    if (num_items < kItemsPerThread * num_threads() && num_threads() > 1) {
      for (const AttentionUnit& unit : units_) add_parts(unit);
      const std::int64_t num_parts = static_cast<std::int64_t>(parts_.size());
      if (num_parts > num_items && num_parts * state_floats_ <= kMaxStateFloats) return run_parts();
    }
    run_whole(num_items);
  }

 private:
  static constexpr std::int64_t kItemsPerThread = 4;
  static constexpr std::int64_t kMaxStateFloats = std::int64_t{4} << 20;  // 16 MiB

  struct Part {
    std::int64_t unit, kv_head, partition;
    std::int64_t first_part;  // of this unit and head; its parts follow each other
    std::int64_t num_parts;
  };

  void add_parts(const AttentionUnit& unit) {
    const Partitions partitions = partitions_of(args_, unit);
    for (std::int64_t head = 0; head < args_.cache.num_kv_heads; ++head) {
      const std::int64_t first = static_cast<std::int64_t>(parts_.size());
      for (std::int64_t partition = partitions.first; partition < partitions.last; ++partition) {
        parts_.push_back({&unit - units_.data(), head, partition, first, partitions.last - partitions.first});
      }
    }
  }

  /// Heads vary fastest: neighbours read the same blocks.
  void run_whole(std::int64_t num_items) {
    const KernelTable& table = kernels();
    const std::int64_t num_kv_heads = args_.cache.num_kv_heads;
    parallel_for(num_items, cost_ / static_cast<double>(num_items), [&](std::int64_t begin, std::int64_t end) {
      float* state = thread_workspace(scratch_floats_ + state_floats_);
      float* scratch = state + state_floats_;
      for (std::int64_t i = begin; i < end; ++i) {
        const AttentionUnit& unit = units_[static_cast<std::size_t>(i / num_kv_heads)];
        const Partitions partitions = partitions_of(args_, unit);
        table.attention(args_, unit, i % num_kv_heads, partitions.first, partitions.last, scratch, state);
        table.attention_finish(args_, unit, i % num_kv_heads, state, state_floats_, 1);
      }
    });
  }

  /// The thread that ends a unit's last part merges them all, in the order of the partitions.
  void run_parts() {
    const KernelTable& table = kernels();
    const std::int64_t num_parts = static_cast<std::int64_t>(parts_.size());
    thread_local Scratch memory;
    float* states = memory.take<float>(num_parts * state_floats_);
    std::vector<std::atomic<std::int64_t>> num_done(parts_.size());
    parallel_for(num_parts, cost_ / static_cast<double>(num_parts), [&](std::int64_t begin, std::int64_t end) {
      float* scratch = thread_workspace(scratch_floats_ + state_floats_);
      for (std::int64_t i = begin; i < end; ++i) {
        const Part& part = parts_[static_cast<std::size_t>(i)];
        const AttentionUnit& unit = units_[static_cast<std::size_t>(part.unit)];
        table.attention(args_, unit, part.kv_head, part.partition, part.partition + 1, scratch,
                        states + i * state_floats_);
        auto& done = num_done[static_cast<std::size_t>(part.first_part)];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < part.num_parts) continue;
        table.attention_finish(args_, unit, part.kv_head, states + part.first_part * state_floats_, state_floats_,
                               part.num_parts);
      }
    });
  }

  const AttentionArgs& args_;
  std::vector<AttentionUnit> units_;
  std::vector<Part> parts_;
  double cost_ = 0.0;
  std::int64_t scratch_floats_ = 0;
  std::int64_t state_floats_ = 0;
};

}  // namespace

void paged_attention(const AttentionArgs& args, const AttentionBatch& batch) {
  check_attention(args, batch);
  std::vector<AttentionUnit> units;
  for (std::int64_t sequence = 0; sequence < batch.num_sequences; ++sequence) {
    plan_sequence(args, batch, sequence, units);
  }
  if (!units.empty()) AttentionRun(args, std::move(units)).run();
}

}  // namespace nybble
