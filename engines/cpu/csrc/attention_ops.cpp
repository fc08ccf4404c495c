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
  // A bfloat16 key goes to as many lines as it has pairs of dimensions, all of them out of memory.
  const double cost = static_cast<double>(8 * num_rows * args.cache.head_dim);
  parallel_for(args.cache.num_kv_heads, cost,
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

/// A thread's scratch and states for one item, kept between calls.
float* thread_workspace(std::int64_t num_floats) {
  thread_local Scratch memory;
  return memory.take<float>(num_floats);
}

/// One attention call's units, cut into items and spread over the threads.
class AttentionRun {
 public:
  AttentionRun(const AttentionArgs& args, std::vector<AttentionUnit> units)
      : args_(args), units_(std::move(units)), group_(args.num_heads / args.cache.num_kv_heads) {
    // Long units first: the threads then end together.
    std::stable_sort(units_.begin(), units_.end(), [&](const AttentionUnit& a, const AttentionUnit& b) {
      return unit_cost(args, a) > unit_cost(args, b);
    });
    const std::int64_t stride = round_up_to_lanes(args.cache.head_dim);
    for (const AttentionUnit& unit : units_) {
      cost_ += static_cast<double>(unit_cost(args, unit) * args.num_heads * args.cache.head_dim);
      const std::int64_t queries = unit.num_rows * group_;
      scratch_floats_ = std::max(scratch_floats_, scratch_floats(queries, stride));
      state_floats_ = std::max(state_floats_, AttentionState::floats(queries, stride));
    }
    cut();
  }

  void run() {
    const KernelTable& table = kernels();
    const auto num_items = static_cast<std::int64_t>(items_.size());
    thread_local Scratch memory;
    float* shared_states = is_partitioned_ ? memory.take<float>(num_states_ * state_floats_) : nullptr;
    std::vector<std::atomic<std::int64_t>> num_done(is_partitioned_ ? items_.size() : 0);
    parallel_for(num_items, cost_ / static_cast<double>(num_items), [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t own_floats = is_partitioned_ ? 0 : num_kv_heads() * state_floats_;
      float* workspace = thread_workspace(scratch_floats_ + own_floats);
      for (std::int64_t i = begin; i < end; ++i) {
        const Item& item = items_[static_cast<std::size_t>(i)];
        float* states =
            is_partitioned_ ? shared_states + item.first_state * state_floats_ : workspace + scratch_floats_;
        const AttentionItem* next = i + 1 < num_items ? &items_[static_cast<std::size_t>(i + 1)].work : nullptr;
        table.attention(args_, item.work, next, workspace, states, state_floats_);
        if (is_partitioned_ && !is_last_part(item, num_done)) continue;
        finish(table, item, is_partitioned_ ? shared_states + first_item(item).first_state * state_floats_ : states);
      }
    });
  }

 private:
  /// Below this a thread's share is too uneven: the partitions become items of their own.
  static constexpr std::int64_t kItemsPerThread = 4;
  /// The same where heads part that would have read blocks whole, see isa/attention_few_queries.h.
  static constexpr std::int64_t kHeadItemsPerThread = 2;
  static constexpr std::int64_t kMaxStateFloats = std::int64_t{4} << 20;  // 16 MiB

  /// The parts of a unit's heads, one or one a partition, follow each other.
  struct Item {
    AttentionItem work;
    std::int64_t first_state;
    std::int64_t first_part, num_parts;
  };

  /// Of one thread for an item of so many queries.
  std::int64_t scratch_floats(std::int64_t num_queries, std::int64_t stride) const {
    const std::int64_t heads = few_queries(args_.cache, num_queries) ? num_kv_heads() : 1;
    if (kernels().attention_tiles && fits_tiles(args_.cache)) {
      return TileOperands::floats(num_queries, stride) + HeadsScratch::floats(heads, num_queries, stride);
    }
    if (few_queries(args_.cache, num_queries)) return HeadsScratch::floats(heads, num_queries, stride);
    return AttentionScratch::floats(num_queries, stride);
  }

  std::int64_t num_kv_heads() const { return args_.cache.num_kv_heads; }

  /// Few queries take all KV heads together as long as that leaves every thread something to do.
  void cut() {
    const std::int64_t num_wanted = num_threads() > 1 ? num_threads() : 0;
    std::int64_t heads = num_kv_heads();
    add_items(heads, false);
    if (num_items() < kItemsPerThread * num_wanted) {
      const std::int64_t num_whole = num_items();
      add_items(heads, true);
      const bool is_worth_it = num_items() > num_whole && num_states_ * state_floats_ <= kMaxStateFloats;
      if (!is_worth_it) add_items(heads, false);
    }
    while (heads > 1 && num_items() < kHeadItemsPerThread * num_wanted) {
      heads = (heads + 1) / 2;
      add_items(heads, is_partitioned_);
    }
  }

  std::int64_t num_items() const { return static_cast<std::int64_t>(items_.size()); }

  /// Heads vary faster than units: neighbours read the same blocks.
  void add_items(std::int64_t heads_together, bool by_partition) {
    items_.clear();
    num_states_ = 0;
    is_partitioned_ = by_partition;
    for (const AttentionUnit& unit : units_) {
      const Partitions partitions = partitions_of(args_, unit);
      const std::int64_t heads = few_queries(args_.cache, unit.num_rows * group_) ? heads_together : 1;
      const std::int64_t step = by_partition ? 1 : partitions.last - partitions.first;
      for (std::int64_t head = 0; head < num_kv_heads(); head += heads) {
        const std::int64_t last_head = std::min(head + heads, num_kv_heads());
        const std::int64_t first_part = num_items();
        const std::int64_t num_parts = (partitions.last - partitions.first) / step;
        for (std::int64_t first = partitions.first; first < partitions.last; first += step) {
          items_.push_back({{&unit, head, last_head, first, first + step}, num_states_, first_part, num_parts});
          num_states_ += last_head - head;
        }
      }
    }
  }

  const Item& first_item(const Item& item) const { return items_[static_cast<std::size_t>(item.first_part)]; }

  /// The thread that ends the last part of a unit's heads merges them all, in the order of the partitions.
  static bool is_last_part(const Item& item, std::vector<std::atomic<std::int64_t>>& num_done) {
    auto& done = num_done[static_cast<std::size_t>(item.first_part)];
    return done.fetch_add(1, std::memory_order_acq_rel) + 1 == item.num_parts;
  }

  void finish(const KernelTable& table, const Item& item, float* states) const {
    const std::int64_t num_heads = item.work.last_head - item.work.first_head;
    for (std::int64_t head = 0; head < num_heads; ++head) {
      table.attention_finish(args_, *item.work.unit, item.work.first_head + head, states + head * state_floats_,
                             num_heads * state_floats_, item.num_parts);
    }
  }

  const AttentionArgs& args_;
  std::vector<AttentionUnit> units_;
  std::int64_t group_;
  std::vector<Item> items_;
  bool is_partitioned_ = false;
  std::int64_t num_states_ = 0;
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
