#pragma once
// Attention of few queries, decode above all: bound by memory, so keys and values are read straight from the cache.
//
// Every line that is read asks for the same line of the tile that attend_item takes next.

#include "attention_item.h"
#include "attention_products.h"

namespace nybble::NYBBLE_ISA {

/// One tile of one head.
template <ElementType Type>
static inline void add_groups(const Queries& queries, const TileView& view, const TileGroups& groups,
                              const TileGroups& next, const AttentionScratch& scratch, const AttentionState& state) {
  const KvCache& cache = queries.args.cache;
  const TileGroups ahead = next.completed_by(groups);
  fetch_scales<Type>(cache, next);
  const Range active = view.queries();
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    constexpr int kCount = decltype(count)::value;
    const int64_t last_group = (view.of(i + kCount - 1).end + kKeyGroup - 1) / kKeyGroup;
    for_vector_tiles<kGroupTile<Type>>(view.of(i).begin / kKeyGroup, last_group, [&](auto vectors, int64_t g) {
      score_groups<Type, kCount, decltype(vectors)::value>(scratch.q + i * queries.stride, groups.keys + g,
                                                           ahead.keys + g, cache.head_dim,
                                                           scratch.scores + i * kAttentionTileKeys + g * kKeyGroup);
    });
  });
  const auto scales = scales_of<Type>(cache, groups);
  raise_largest(view, scratch, state, scales);
  weigh(view, scratch, state, scales);
  const GroupedValues<Type> values{groups.values, ahead.values, cache.head_dim * element_bytes(Type), 0};
  for_query_tiles(active.begin, active.end, [&](auto count, int64_t i) {
    add_values<decltype(count)::value>(view, values, queries.stride, i, scratch, state);
  });
}

/// For attend_item: keys and values straight from the cache, queries as float32.
template <ElementType Type>
struct FewQueriesKernel {
  using Tile = TileGroups;

  Tile find(const Queries& queries, int64_t start) const { return find_groups(queries, start); }
  Tile next_head(const Tile& groups, const KvCache& cache) const { return groups.next_head(cache); }
  void load(const Queries& queries, const AttentionScratch& scratch) const { load_queries(queries, scratch.q); }
  void add(const Queries& queries, const TileView& view, const Tile& groups, const Tile& next,
           const AttentionScratch& scratch, const AttentionState& state) const {
    add_groups<Type>(queries, view, groups, next, scratch, state);
  }
};

}  // namespace nybble::NYBBLE_ISA
