// Causal attention over the paged KV cache.
//
// Positions are cut into partitions of kAttentionPartitionKeys, a partition into tiles of kAttentionTileKeys, both by
// absolute position. The softmax runs online over a partition's tiles; partitions are merged in ascending order. Inside
// a tile every score and every output is one chain over ascending dimensions or positions, and the weights are summed
// by position modulo 16. A query's result therefore depends on its position and the cached values only: decode, any
// chunking of a prefill, a reused prefix and partitions spread over threads give the same bits. Masked positions are
// left out, not multiplied by zero, so what an unwritten slot holds does not matter.

#include "../attention_layout.h"
#include "attention_products.h"
#include "kernels.h"
#include "kv_tiles.h"

namespace nybble::NYBBLE_ISA {

namespace {

struct Range {
  int64_t begin, end;
};

/// The query vectors of one unit and KV head: vector i is row i / group, head i % group of the KV head.
struct Queries {
  const AttentionArgs& args;
  const AttentionUnit& unit;
  int64_t kv_head;
  int64_t group = args.num_heads / args.cache.num_kv_heads;
  int64_t count = unit.num_rows * group;
  int64_t stride = round_up_to_lanes(args.cache.head_dim);

  int64_t oldest(int64_t row) const {
    return args.sliding_window > 0 ? max64(0, unit.first_position + row - args.sliding_window + 1) : 0;
  }
  int64_t last() const { return unit.first_position + unit.num_rows - 1; }
  /// Positions of the tile at `start` that a row sees; neither end ever decreases from row to row.
  Range seen(int64_t row, int64_t start) const {
    return {min64(kAttentionTileKeys, max64(0, oldest(row) - start)),
            min64(kAttentionTileKeys, max64(0, unit.first_position + row - start + 1))};
  }
  int64_t offset(int64_t i) const {  // of vector i in q and out
    return ((unit.first_row + i / group) * args.num_heads + kv_head * group + i % group) * args.cache.head_dim;
  }
};

void load_queries(const Queries& queries, float* q) {
  const F16 scale = splat(queries.args.scale * 1.44269504F);  // scores are exponents of two
  const int64_t head_dim = queries.args.cache.head_dim;
  for (int64_t i = 0; i < queries.count; ++i) {
    const float* source = queries.args.q + queries.offset(i);
    float* target = q + i * queries.stride;
    for (int64_t d = 0; d < head_dim; d += 16) {
      const F16 part = head_dim - d >= 16 ? load(source + d) : load_partial(source + d, head_dim - d);
      store(target + d, part * scale);
    }
  }
}

void clear(const Queries& queries, const AttentionState& state, float* lane_sums) {
  const int64_t padded = round_up_to_lanes(queries.count);
  for (int64_t i = 0; i < padded; ++i) state.largest[i] = -__builtin_inff();
  std::memset(lane_sums, 0, static_cast<std::size_t>(padded) * 16 * sizeof(float));
  std::memset(state.values, 0, static_cast<std::size_t>(padded * queries.stride) * sizeof(float));
}

/// Largest score of each query in [first, last), and what that makes of the sums so far.
void raise_largest(const Queries& queries, int64_t start, Range active, const AttentionScratch& scratch,
                   const AttentionState& state) {
  for (int64_t i = active.begin; i < active.end; ++i) {
    const Range seen = queries.seen(i / queries.group, start);
    F16 highest = splat(-__builtin_inff());
    for (int64_t j = seen.begin / 16 * 16; j < seen.end; j += 16) {
      const F16 scores = load(scratch.scores + i * kAttentionTileKeys + j);
      highest = max(select_lanes(scores, splat(-__builtin_inff()), seen.begin - j, seen.end - j), highest);
    }
    const float largest = max_lanes(highest);
    scratch.factors[i] = state.largest[i];
    if (largest > state.largest[i]) state.largest[i] = largest;
  }
  for (int64_t i = active.begin / 16 * 16; i < active.end; i += 16) {
    store(scratch.factors + i, exp2(load(scratch.factors + i) - load(state.largest + i)));
  }
}

/// Scores become weights; masked lanes count as 0, the others sit in the lane of their position.
void weigh(const Queries& queries, int64_t start, Range active, const AttentionScratch& scratch,
           const AttentionState& state) {
  for (int64_t i = active.begin; i < active.end; ++i) {
    const Range seen = queries.seen(i / queries.group, start);
    const F16 largest = splat(state.largest[i]);
    F16 sum = load(scratch.lane_sums + 16 * i) * splat(scratch.factors[i]);
    for (int64_t j = seen.begin / 16 * 16; j < seen.end; j += 16) {
      float* scores = scratch.scores + i * kAttentionTileKeys + j;
      const F16 weights = exp2(load(scores) - largest);
      store(scores, weights);
      sum = sum + select_lanes(weights, splat(0.0F), seen.begin - j, seen.end - j);
    }
    store(scratch.lane_sums + 16 * i, sum);
  }
}

/// Rows of a tile of queries see different positions: what all see is one product, the rest goes query by query.
template <int Count>
void add_values(const Queries& queries, int64_t start, int64_t first, const AttentionScratch& scratch,
                const AttentionState& state) {
  const Range oldest = queries.seen(first / queries.group, start);
  const Range newest = queries.seen((first + Count - 1) / queries.group, start);
  const int64_t stride = queries.stride;
  const float* weights = scratch.scores + first * kAttentionTileKeys;
  float* sums = state.values + first * stride;
  const int64_t num_vectors = stride / 16;
  const auto add_one = [&](int64_t i, Range positions, bool is_first) {
    const float* factor = is_first ? scratch.factors + first + i : nullptr;
    for_vector_tiles(0, num_vectors, [&](auto vectors, int64_t v) {
      value_tile<1, decltype(vectors)::value>(weights + i * kAttentionTileKeys, factor, scratch.tile + 16 * v, stride,
                                              positions.begin, positions.end, sums + i * stride + 16 * v);
    });
  };
  const Range common{newest.begin, oldest.end};
  if (common.begin >= common.end) {
    for (int64_t i = 0; i < Count; ++i) add_one(i, queries.seen((first + i) / queries.group, start), true);
    return;
  }
  const bool ragged_begin = oldest.begin < common.begin;
  for (int64_t i = 0; ragged_begin && i < Count; ++i) {
    add_one(i, {queries.seen((first + i) / queries.group, start).begin, common.begin}, true);
  }
  for_vector_tiles(0, num_vectors, [&](auto vectors, int64_t v) {
    value_tile<Count, decltype(vectors)::value>(weights, ragged_begin ? nullptr : scratch.factors + first,
                                                scratch.tile + 16 * v, stride, common.begin, common.end, sums + 16 * v);
  });
  for (int64_t i = 0; common.end < newest.end && i < Count; ++i) {
    add_one(i, {common.end, queries.seen((first + i) / queries.group, start).end}, false);
  }
}

/// Rows that see any of the tile, as query vectors.
Range active_queries(const Queries& queries, int64_t start) {
  int64_t first = 0;
  int64_t last = queries.unit.num_rows;
  while (first < last && queries.seen(first, start).end <= 0) ++first;
  while (last > first && queries.seen(last - 1, start).begin >= kAttentionTileKeys) --last;
  return {first * queries.group, last * queries.group};
}

struct TilePair {
  TileRows keys, values;
};

void find_tile(const Queries& queries, int64_t start, const float* zeros, TilePair& out) {
  const KvCache& cache = queries.args.cache;
  const int64_t begin = max64(0, queries.oldest(0) - start);
  const int64_t end = min64(kAttentionTileKeys, queries.last() - start + 1);
  find_rows(cache, cache.k, queries.unit.block_table, queries.kv_head, start, begin, end, zeros, out.keys);
  find_rows(cache, cache.v, queries.unit.block_table, queries.kv_head, start, begin, end, zeros, out.values);
}

template <ElementType Type>
void add_tile(const Queries& queries, int64_t start, const TilePair& tile, const TileRows& next_keys,
              const AttentionScratch& scratch, const AttentionState& state) {
  const Range active = active_queries(queries, start);
  const int64_t head_dim = queries.args.cache.head_dim;
  const Range oldest = queries.seen(active.begin / queries.group, start);
  const Range newest = queries.seen((active.end - 1) / queries.group, start);
  pack_keys<Type>(tile.keys, oldest.begin / 16, (newest.end + 15) / 16, head_dim, queries.stride, tile.values,
                  scratch.tile);
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    constexpr int kCount = decltype(count)::value;
    const int64_t begin = queries.seen(i / queries.group, start).begin / 16;
    const int64_t end = (queries.seen((i + kCount - 1) / queries.group, start).end + 15) / 16;
    for_vector_tiles(begin, end, [&](auto vectors, int64_t v) {
      score_tile<kCount, decltype(vectors)::value>(scratch.q + i * queries.stride, scratch.tile + 16 * v,
                                                   queries.stride, scratch.scores + i * kAttentionTileKeys + 16 * v);
    });
  });
  raise_largest(queries, start, active, scratch, state);
  weigh(queries, start, active, scratch, state);
  pack_values<Type>(tile.values, oldest.begin, newest.end, head_dim, queries.stride, next_keys, scratch.tile);
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    add_values<decltype(count)::value>(queries, start, i, scratch, state);
  });
}

/// Adds the later positions of `from` to `into`.
void merge(const Queries& queries, const AttentionState& from, const AttentionState& into) {
  for (int64_t i = 0; i < queries.count; ++i) {
    if (from.totals[i] == 0.0F) continue;
    float* values = into.values + i * queries.stride;
    const float* added = from.values + i * queries.stride;
    const bool is_first = into.totals[i] == 0.0F;
    const float largest = from.largest[i] > into.largest[i] ? from.largest[i] : into.largest[i];
    const F16 keep = exp2(splat(into.largest[i] - largest));
    const F16 add = exp2(splat(from.largest[i] - largest));
    for (int64_t d = 0; d < queries.stride; d += 16) {
      const F16 part = load(added + d);
      store(values + d, is_first ? part : fma(part, add, load(values + d) * keep));
    }
    alignas(64) float total[16];
    store(total, fma(splat(from.totals[i]), add, splat(into.totals[i]) * keep));
    into.totals[i] = is_first ? from.totals[i] : total[0];
    into.largest[i] = is_first ? from.largest[i] : largest;
  }
}

template <ElementType Type>
void attend(const Queries& queries, int64_t first_partition, int64_t last_partition, float* workspace,
            float* state_memory) {
  const AttentionScratch scratch = AttentionScratch::at(workspace, queries.count, queries.stride);
  const AttentionState whole = AttentionState::at(state_memory, queries.count);
  load_queries(queries, scratch.q);
  std::memset(scratch.zeros, 0, static_cast<std::size_t>(queries.stride) * sizeof(float));
  const int64_t first = max64(queries.oldest(0), first_partition * kAttentionPartitionKeys);
  const int64_t end = min64(queries.last() + 1, last_partition * kAttentionPartitionKeys);
  int64_t start = first / kAttentionTileKeys * kAttentionTileKeys;
  TilePair tiles[2];
  find_tile(queries, start, scratch.zeros, tiles[0]);
  bool is_first = true;
  AttentionState state = whole;
  for (int turn = 0; start < end; turn ^= 1) {
    const int64_t next = start + kAttentionTileKeys;
    const int64_t partition_end = (start / kAttentionPartitionKeys + 1) * kAttentionPartitionKeys;
    if (start <= first || start % kAttentionPartitionKeys == 0) {
      state = is_first ? whole : scratch.partition;
      clear(queries, state, scratch.lane_sums);
    }
    if (next < end) find_tile(queries, next, scratch.zeros, tiles[turn ^ 1]);
    add_tile<Type>(queries, start, tiles[turn], tiles[turn ^ (next < end ? 1 : 0)].keys, scratch, state);
    if (next == partition_end || next >= end) {
      for (int64_t i = 0; i < queries.count; ++i) state.totals[i] = sum_lanes(load(scratch.lane_sums + 16 * i));
      if (!is_first) merge(queries, state, whole);
      is_first = false;
    }
    start = next;
  }
}

}  // namespace

void attention(const AttentionArgs& args, const AttentionUnit& unit, int64_t kv_head, int64_t first_partition,
               int64_t last_partition, float* workspace, float* state) {
  const Queries queries{args, unit, kv_head};
  if (args.cache.element_type == ElementType::kFloat32) {
    attend<ElementType::kFloat32>(queries, first_partition, last_partition, workspace, state);
  } else {
    attend<ElementType::kBfloat16>(queries, first_partition, last_partition, workspace, state);
  }
}

void attention_finish(const AttentionArgs& args, const AttentionUnit& unit, int64_t kv_head, float* states,
                      int64_t state_floats, int64_t num_states) {
  const Queries queries{args, unit, kv_head};
  const AttentionState whole = AttentionState::at(states, queries.count);
  for (int64_t i = 1; i < num_states; ++i) {
    merge(queries, AttentionState::at(states + i * state_floats, queries.count), whole);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    float* target = args.out + queries.offset(i);
    const F16 total = splat(whole.totals[i]);
    for (int64_t d = 0; d < args.cache.head_dim; d += 16) {
      store_partial(target + d, load(whole.values + i * queries.stride + d) / total, args.cache.head_dim - d);
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
