#pragma once
// Attention of few queries, decode above all: bound by memory, so keys and values are read straight from the cache.
//
// The KV heads of a block lie side by side and take a tile one after the other. Every line that is read asks for the
// same line of the next head, or after the last one of the next tile's, or the next item's, first: memory then sees a
// stream per block that goes through all heads.

#include "attention_products.h"
#include "attention_softmax.h"

namespace nybble::NYBBLE_ISA {

/// The tiles of an item: positions [first, end), in tiles from `start` on.
struct ItemTiles {
  int64_t first, end, start;

  ItemTiles(const Queries& queries, const AttentionItem& item)
      : first(max64(queries.oldest(), item.first_partition * kAttentionPartitionKeys)),
        end(min64(queries.last() + 1, item.last_partition * kAttentionPartitionKeys)),
        start(first / kAttentionTileKeys * kAttentionTileKeys) {}
};

static inline TileGroups find_groups(const Queries& queries, int64_t start) {
  return find_groups(queries.args.cache, queries.unit.block_table, queries.kv_head, start,
                     max64(0, queries.oldest() - start), min64(kAttentionTileKeys, queries.last() - start + 1));
}

/// One tile of one head.
template <ElementType Type>
static inline void add_groups(const Queries& queries, const TileView& view, const TileGroups& groups,
                              const TileGroups& next, const AttentionScratch& scratch, const AttentionState& state) {
  const int64_t head_dim = queries.args.cache.head_dim;
  const TileGroups ahead = next.completed_by(groups);
  const Range active = view.queries();
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    constexpr int kCount = decltype(count)::value;
    const int64_t last_group = (view.of(i + kCount - 1).end + kKeyGroup - 1) / kKeyGroup;
    for_vector_tiles(view.of(i).begin / kKeyGroup, last_group, [&](auto vectors, int64_t g) {
      score_groups<Type, kCount, decltype(vectors)::value>(scratch.q + i * queries.stride, groups.keys + g,
                                                           ahead.keys + g, head_dim,
                                                           scratch.scores + i * kAttentionTileKeys + g * kKeyGroup);
    });
  });
  raise_largest(view, scratch, state);
  weigh(view, scratch, state);
  const GroupedValues<Type> values{groups.values, ahead.values, head_dim * element_bytes(Type), 0};
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    add_values<decltype(count)::value>(view, values, queries.stride, i, scratch, state);
  });
}

/// The state a tile adds to: the first partition's is the item's, later ones are merged into it.
static inline AttentionState state_of(const AttentionScratch& scratch, float* states, int64_t num_queries,
                                      bool is_first) {
  return is_first ? AttentionState::at(states, num_queries) : scratch.partition;
}

template <ElementType Type>
static void attend_few(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next,
                       float* workspace, float* states, int64_t state_floats) {
  const Queries any{args, *item.unit, item.first_head};
  const FewQueriesScratch memory = FewQueriesScratch::at(workspace, any.count, any.stride);
  const int64_t num_heads = item.last_head - item.first_head;
  const auto for_heads = [&](bool is_first, const auto& function) {
    for (int64_t head = 0; head < num_heads; ++head) {
      const AttentionScratch scratch = memory.of(head, any.count, any.stride);
      const Queries queries{args, *item.unit, item.first_head + head};
      function(queries, scratch, state_of(scratch, states + head * state_floats, any.count, is_first));
    }
  };
  for_heads(true, [](const Queries& queries, const AttentionScratch& scratch, const AttentionState&) {
    load_queries(queries, scratch.q);
  });
  const ItemTiles tiles(any, item);
  TileGroups groups = find_groups(any, tiles.start);
  bool is_first = true;
  for (int64_t start = tiles.start; start < tiles.end;) {
    const int64_t after = start + kAttentionTileKeys;
    TileGroups next_tile = groups;
    if (after < tiles.end) {
      next_tile = find_groups(any, after);
    } else if (next != nullptr) {
      const Queries queries{args, *next->unit, next->first_head};
      next_tile = find_groups(queries, ItemTiles(queries, *next).start);
    }
    const TileView view(any, start);
    const bool begins = start <= tiles.first || start % kAttentionPartitionKeys == 0;
    const bool ends = after % kAttentionPartitionKeys == 0 || after >= tiles.end;
    for_heads(is_first, [&](const Queries& queries, const AttentionScratch& scratch, const AttentionState& state) {
      if (begins) clear(queries, state, scratch.lane_sums);
      const bool is_last = queries.kv_head + 1 == item.last_head;
      const TileGroups next_groups = is_last ? next_tile : groups.next_head(args.cache);
      add_groups<Type>(queries, view, groups, next_groups, scratch, state);
      groups = next_groups;
      if (!ends) return;
      for (int64_t i = 0; i < queries.count; ++i) state.totals[i] = sum_lanes(load(scratch.lane_sums + 16 * i));
      float* first_state = states + (queries.kv_head - item.first_head) * state_floats;
      if (!is_first) merge(queries, state, AttentionState::at(first_state, queries.count));
    });
    if (ends) is_first = false;
    start = after;
  }
}

}  // namespace nybble::NYBBLE_ISA
