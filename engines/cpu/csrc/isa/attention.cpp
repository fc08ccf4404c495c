// Causal attention over the paged KV cache.
//
// Positions are cut into partitions of kAttentionPartitionKeys, a partition into tiles of kAttentionTileKeys, both by
// absolute position. The softmax runs online over a partition's tiles; partitions are merged in ascending order. Inside
// a tile every score and every output is one chain over ascending dimensions or positions, and the weights are summed
// by position modulo 16. A query's result therefore depends on its position and the cached values only: decode, any
// chunking of a prefill, a reused prefix and partitions spread over threads give the same bits. Masked positions are
// left out, not multiplied by zero, so what an unwritten slot holds does not matter.

#include "attention_products.h"
#include "attention_softmax.h"
#include "kernels.h"
#include "kv_tiles.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Up to this many queries read a tile so few times that its keys are packed, and used, a few dimensions at a time:
/// memory then has something to do while the processor multiplies.
constexpr int64_t kFewQueries = 16;
constexpr int64_t kFewQueriesDimensions = 32;

void load_queries(const Queries& queries, float* q) {
  const F16 scale = splat(queries.args.scale * 1.44269504F);  // scores are exponents of two
  const int64_t head_dim = queries.args.cache.head_dim;
  for (int64_t row = 0; row < queries.unit.num_rows; ++row) {
    const float* source = queries.args.q + queries.offset(row);
    for (int64_t head = 0; head < queries.group; ++head, source += head_dim, q += queries.stride) {
      for (int64_t d = 0; d < head_dim; d += 16) {
        const F16 part = head_dim - d >= 16 ? load(source + d) : load_partial(source + d, head_dim - d);
        store(q + d, part * scale);
      }
    }
  }
}

template <ElementType Type>
void add_scores(const Queries& queries, const TileView& view, const TileRows& keys, Ahead& ahead,
                const AttentionScratch& scratch) {
  const Range active = view.queries();
  const Range positions = view.positions();
  const int64_t stride = queries.stride;
  const int64_t step = queries.count <= kFewQueries ? kFewQueriesDimensions : stride;
  for (int64_t d = 0; d < stride; d += step) {
    const int64_t end = min64(stride, d + step);
    pack_keys<Type>(keys, positions.begin / 16, (positions.end + 15) / 16, queries.args.cache.head_dim, d, end, ahead,
                    scratch.tile);
    for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
      constexpr int kCount = decltype(count)::value;
      const int64_t first_vector = view.of(i).begin / 16;
      const int64_t last_vector = (view.of(i + kCount - 1).end + 15) / 16;
      for_vector_tiles(first_vector, last_vector, [&](auto vectors, int64_t v) {
        score_tile<kCount, decltype(vectors)::value>(scratch.q + i * stride, scratch.tile + 16 * v, stride, d, end,
                                                     scratch.scores + i * kAttentionTileKeys + 16 * v);
      });
    });
  }
}

/// Rows of a tile of queries see different positions: what all see is one product, the rest goes query by query.
template <int Count, typename Tile>
void add_values(const TileView& view, const Tile& values, int64_t stride, int64_t first,
                const AttentionScratch& scratch, const AttentionState& state) {
  const Range oldest = view.of(first);
  const Range newest = view.of(first + Count - 1);
  const float* weights = scratch.scores + first * kAttentionTileKeys;
  const float* factors = scratch.factors + first;
  float* sums = state.values + first * stride;
  const int64_t num_vectors = stride / 16;
  const auto add_one = [&](int64_t i, Range positions, const float* factor) {
    for_vector_tiles(0, num_vectors, [&](auto vectors, int64_t v) {
      value_tile<1, decltype(vectors)::value>(weights + i * kAttentionTileKeys, factor, values.from(16 * v),
                                              positions.begin, positions.end, sums + i * stride + 16 * v, stride);
    });
  };
  const Range common{newest.begin, oldest.end};
  if (common.begin >= common.end) {
    for (int64_t i = 0; i < Count; ++i) add_one(i, view.of(first + i), factors + i);
    return;
  }
  if (oldest.begin < common.begin) {
    for (int64_t i = 0; i < Count; ++i) add_one(i, {view.of(first + i).begin, common.begin}, factors + i);
    factors = nullptr;
  }
  for_vector_tiles(0, num_vectors, [&](auto vectors, int64_t v) {
    value_tile<Count, decltype(vectors)::value>(weights, factors, values.from(16 * v), common.begin, common.end,
                                                sums + 16 * v, stride);
  });
  for (int64_t i = 0; common.end < newest.end && i < Count; ++i) {
    add_one(i, {common.end, view.of(first + i).end}, nullptr);
  }
}

struct TilePair {
  TileRows keys, values;
};

void find_tile(const Queries& queries, int64_t start, const float* zeros, TilePair& out) {
  const KvCache& cache = queries.args.cache;
  const int64_t begin = max64(0, queries.oldest() - start);
  const int64_t end = min64(kAttentionTileKeys, queries.last() - start + 1);
  find_rows(cache, cache.k, queries.unit.block_table, queries.kv_head, start, begin, end, zeros, out.keys);
  find_rows(cache, cache.v, queries.unit.block_table, queries.kv_head, start, begin, end, zeros, out.values);
}

template <ElementType Type>
void add_tile(const Queries& queries, int64_t start, const TilePair& tile, const TileRows& next_keys,
              const AttentionScratch& scratch, const AttentionState& state) {
  const TileView view(queries, start);
  const int64_t row_bytes = queries.args.cache.head_dim * element_bytes(Type);
  Ahead values_ahead(tile.values, row_bytes);
  Ahead keys_ahead(next_keys, row_bytes);
  add_scores<Type>(queries, view, tile.keys, values_ahead, scratch);
  raise_largest(view, scratch, state);
  weigh(view, scratch, state);
  const auto add_all = [&](const auto& values) {
    for_query_tiles(view.queries().begin, view.queries().end, [&](auto count, int64_t i) {
      add_values<decltype(count)::value>(view, values, queries.stride, i, scratch, state);
    });
  };
  if (queries.count <= kQueryTile && queries.stride == queries.args.cache.head_dim) {
    add_all(CachedTile<Type>{tile.values, keys_ahead, 0});
    return;
  }
  const Range positions = view.positions();
  pack_values<Type>(tile.values, positions.begin, positions.end, queries.args.cache.head_dim, queries.stride,
                    keys_ahead, scratch.tile);
  add_all(PackedTile{scratch.tile, queries.stride});
}

template <ElementType Type>
void attend(const Queries& queries, int64_t first_partition, int64_t last_partition, float* workspace,
            float* state_memory) {
  const AttentionScratch scratch = AttentionScratch::at(workspace, queries.count, queries.stride);
  const AttentionState whole = AttentionState::at(state_memory, queries.count);
  load_queries(queries, scratch.q);
  std::memset(scratch.zeros, 0, static_cast<std::size_t>(queries.stride) * sizeof(float));
  const int64_t first = max64(queries.oldest(), first_partition * kAttentionPartitionKeys);
  const int64_t end = min64(queries.last() + 1, last_partition * kAttentionPartitionKeys);
  int64_t start = first / kAttentionTileKeys * kAttentionTileKeys;
  TilePair tiles[2];
  find_tile(queries, start, scratch.zeros, tiles[0]);
  bool is_first = true;
  AttentionState state = whole;
  for (int turn = 0; start < end; turn ^= 1) {
    const int64_t next = start + kAttentionTileKeys;
    if (start <= first || start % kAttentionPartitionKeys == 0) {
      state = is_first ? whole : scratch.partition;
      clear(queries, state, scratch.lane_sums);
    }
    if (next < end) find_tile(queries, next, scratch.zeros, tiles[turn ^ 1]);
    add_tile<Type>(queries, start, tiles[turn], tiles[turn ^ (next < end ? 1 : 0)].keys, scratch, state);
    if (next % kAttentionPartitionKeys == 0 || next >= end) {
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
  } else if (args.cache.element_type == ElementType::kFloat8E4m3) {
    attend<ElementType::kFloat8E4m3>(queries, first_partition, last_partition, workspace, state);
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
  const int64_t head_dim = args.cache.head_dim;
  for (int64_t i = 0; i < queries.count; ++i) {
    float* target = args.out + queries.offset(i / queries.group) + i % queries.group * head_dim;
    const F16 inverse = splat(1.0F / whole.totals[i]);
    for (int64_t d = 0; d < head_dim; d += 16) {
      store_partial(target + d, load(whole.values + i * queries.stride + d) * inverse, head_dim - d);
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
