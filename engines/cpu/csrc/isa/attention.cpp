// Causal attention over the paged KV cache.
//
// Positions are cut into partitions of kAttentionPartitionKeys, a partition into tiles of kAttentionTileKeys, both by
// absolute position. The softmax runs online over a partition's tiles; partitions are merged in ascending order. Inside
// a tile every score and every output is one chain over ascending dimensions or positions, and the weights are summed
// by position modulo 16. A query's result therefore depends on its position and the cached values only: decode, any
// chunking of a prefill, a reused prefix and partitions spread over threads give the same bits. Masked positions are
// left out, not multiplied by zero, so what an unwritten slot holds does not matter.

#include "attention_few_queries.h"
#include "attention_products.h"
#include "attention_softmax.h"
#include "kernels.h"
#include "kv_tiles.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Up to kFewQueries queries read a tile so few times that its keys are packed, and used, a few dimensions at a time:
/// memory then has something to do while the processor multiplies.
constexpr int64_t kFewQueriesDimensions = 32;

/// A tile of one KV head: rows of values, and of keys where they do not lie in groups.
struct Tile {
  TileRows keys, values;
  const std::uint8_t* key_groups[kTileGroups];
  TileScaleBytes scales;  // E4M3
};

void find_tile(const Queries& queries, int64_t start, const float* zeros, Tile& out) {
  const KvCache& cache = queries.args.cache;
  const std::int32_t* table = queries.unit.block_table;
  const auto [begin, end] = positions_of(queries, start);
  find_rows(cache, cache.v, table, queries.kv_head, start, begin, end, zeros, out.values);
  if (cache.element_type == ElementType::kFloat8E4m3) {
    find_scales(cache, table, queries.kv_head, start, begin, end, out.scales);
  }
  if (!keys_in_groups(cache)) {
    find_rows(cache, cache.k, table, queries.kv_head, start, begin, end, zeros, out.keys);
    return;
  }
  const TileGroups groups = find_groups(queries, start);
  for (int64_t g = 0; g < kTileGroups; ++g) {
    out.key_groups[g] = groups.keys[min64(max64(g, groups.first), groups.last - 1)];
  }
}

template <ElementType Type>
Ahead keys_ahead_of(const Tile& tile, const KvCache& cache) {
  if (keys_in_groups(cache)) return Ahead(tile.key_groups, kTileGroups, group_bytes<Type>(cache));
  return Ahead(tile.keys.rows, kAttentionTileKeys, cache.head_dim * element_bytes(Type));
}

template <ElementType Type>
void add_scores(const Queries& queries, const TileView& view, const Tile& tile, Ahead& ahead,
                const AttentionScratch& scratch) {
  const Range active = view.queries();
  const Range positions = view.positions();
  const int64_t stride = queries.stride;
  const int64_t step = queries.count <= kFewQueries ? kFewQueriesDimensions : stride;
  for (int64_t d = 0; d < stride; d += step) {
    const int64_t end = min64(stride, d + step);
    const int64_t first_group = positions.begin / kKeyGroup;
    const int64_t last_group = (positions.end + kKeyGroup - 1) / kKeyGroup;
    if (keys_in_groups(queries.args.cache)) {
      if constexpr (Type != ElementType::kFloat32) {
        pack_key_groups<Type>(tile.key_groups, first_group, last_group, d, end, ahead, scratch.tile);
      }
    } else {
      pack_keys<Type>(tile.keys, first_group, last_group, queries.args.cache.head_dim, d, end, ahead, scratch.tile);
    }
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

template <ElementType Type>
void add_tile(const Queries& queries, int64_t start, const Tile& tile, const Tile& next,
              const AttentionScratch& scratch, const AttentionState& state) {
  const TileView view(queries, start);
  const KvCache& cache = queries.args.cache;
  Ahead values_ahead(tile.values.rows, kAttentionTileKeys, cache.head_dim * element_bytes(Type));
  Ahead keys_ahead = keys_ahead_of<Type>(next, cache);
  add_scores<Type>(queries, view, tile, values_ahead, scratch);
  const auto scales = scales_of<Type>(tile.scales);
  raise_largest(view, scratch, state, scales);
  weigh(view, scratch, state, scales);
  const auto add_all = [&](const auto& values) {
    for_query_tiles(view.queries().begin, view.queries().end, [&](auto count, int64_t i) {
      add_values<decltype(count)::value>(view, values, queries.stride, i, scratch, state);
    });
  };
  if (queries.count <= kQueryTile && !keys_in_groups(cache) && queries.stride == queries.args.cache.head_dim) {
    add_all(CachedTile<Type>{tile.values, keys_ahead, 0});
    return;
  }
  const Range positions = view.positions();
  if (keys_in_groups(cache)) {
    if constexpr (Type != ElementType::kFloat32) {
      pack_value_pairs<Type>(tile.values, positions.begin, positions.end, queries.stride, keys_ahead, scratch.tile);
    }
  } else {
    pack_values<Type>(tile.values, positions.begin, positions.end, cache.head_dim, queries.stride, keys_ahead,
                      scratch.tile);
  }
  add_all(PackedTile{scratch.tile, queries.stride});
}

template <ElementType Type>
void attend_packed(const Queries& queries, int64_t first_partition, int64_t last_partition, float* workspace,
                   float* state_memory) {
  const AttentionScratch scratch = AttentionScratch::at(workspace, queries.count, queries.stride);
  const AttentionState whole = AttentionState::at(state_memory, queries.count);
  load_queries(queries, scratch.q);
  std::memset(scratch.zeros, 0, static_cast<std::size_t>(queries.stride) * sizeof(float));
  const int64_t first = max64(queries.oldest(), first_partition * kAttentionPartitionKeys);
  const int64_t end = min64(queries.last() + 1, last_partition * kAttentionPartitionKeys);
  int64_t start = first / kAttentionTileKeys * kAttentionTileKeys;
  Tile tiles[2];
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
    add_tile<Type>(queries, start, tiles[turn], tiles[turn ^ (next < end ? 1 : 0)], scratch, state);
    if (next % kAttentionPartitionKeys == 0 || next >= end) {
      for (int64_t i = 0; i < queries.count; ++i) state.totals[i] = sum_lanes(load(scratch.lane_sums + 16 * i));
      if (!is_first) merge(queries, state, whole);
      is_first = false;
    }
    start = next;
  }
}

template <ElementType Type>
void attend(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
            float* states, int64_t state_floats) {
  const Queries queries{args, *item.unit, item.first_head};
  if constexpr (Type != ElementType::kFloat32) {
    if (few_queries(args.cache, queries.count)) {
      return attend_item(FewQueriesKernel<Type>{}, args, item, next, workspace, states, state_floats);
    }
  }
  attend_packed<Type>(queries, item.first_partition, item.last_partition, workspace, states);
}

}  // namespace

void attention(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
               float* states, int64_t state_floats) {
  if (args.cache.element_type == ElementType::kFloat32) {
    attend<ElementType::kFloat32>(args, item, next, workspace, states, state_floats);
  } else if (args.cache.element_type == ElementType::kFloat8E4m3) {
    attend<ElementType::kFloat8E4m3>(args, item, next, workspace, states, state_floats);
  } else {
    attend<ElementType::kBfloat16>(args, item, next, workspace, states, state_floats);
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
    const float* sums = whole.values + i * queries.stride;
    if (keys_in_groups(args.cache)) {
      for (int64_t d = 0; d < head_dim; d += 32) {
        store_interleaved(target + d, load(sums + d) * inverse, load(sums + d + 16) * inverse);
      }
      continue;
    }
    for (int64_t d = 0; d < head_dim; d += 16) store_partial(target + d, load(sums + d) * inverse, head_dim - d);
  }
}

}  // namespace nybble::NYBBLE_ISA
