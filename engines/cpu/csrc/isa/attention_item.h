#pragma once
// One item of attention, tile after tile: all its KV heads take a tile before the next one.
//
// Every line that is read may ask for the same line of the next head, or after the last one of the next tile's, or the
// next item's, first: memory then sees a stream per block that goes through all heads.

#include "attention_softmax.h"
#include "kv_groups.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

/// The tiles of an item: positions [first, end), in tiles from `start` on.
struct ItemTiles {
  int64_t first, end, start;

  ItemTiles(const Queries& queries, const AttentionItem& item)
      : first(max64(queries.oldest(), item.first_partition * kAttentionPartitionKeys)),
        end(min64(queries.last() + 1, item.last_partition * kAttentionPartitionKeys)),
        start(first / kAttentionTileKeys * kAttentionTileKeys) {}
};

/// Positions of the tile at `start` that any query of a unit sees.
static inline Range positions_of(const Queries& queries, int64_t start) {
  return {max64(0, queries.oldest() - start), min64(kAttentionTileKeys, queries.last() - start + 1)};
}

static inline TileGroups find_groups(const Queries& queries, int64_t start) {
  const Range positions = positions_of(queries, start);
  return find_groups(queries.args.cache, queries.unit.block_table, queries.kv_head, start, positions.begin,
                     positions.end);
}

/// The state a tile adds to: the first partition's is the item's, later ones are merged into it.
static inline AttentionState state_of(const AttentionScratch& scratch, float* states, int64_t num_queries,
                                      bool is_first) {
  return is_first ? AttentionState::at(states, num_queries) : scratch.partition;
}

/// `Kernel` has a type Tile and the functions find(queries, start) and next_head(tile, cache) that give one,
/// load(queries, scratch), and add(queries, view, tile, next, scratch, state), which adds a tile to a state and may ask
/// for the tile `next` meanwhile.
template <class Kernel>
static void attend_item(const Kernel& kernel, const AttentionArgs& args, const AttentionItem& item,
                        const AttentionItem* next, float* workspace, float* states, int64_t state_floats) {
  const Queries any{args, *item.unit, item.first_head};
  const HeadsScratch memory = HeadsScratch::at(workspace, any.count, any.stride);
  const int64_t num_heads = item.last_head - item.first_head;
  const auto for_heads = [&](bool is_first, const auto& function) {
    for (int64_t head = 0; head < num_heads; ++head) {
      const AttentionScratch scratch = memory.of(head, any.count, any.stride);
      const Queries queries{args, *item.unit, item.first_head + head};
      function(queries, scratch, state_of(scratch, states + head * state_floats, any.count, is_first));
    }
  };
  for_heads(true, [&](const Queries& queries, const AttentionScratch& scratch, const AttentionState&) {
    kernel.load(queries, scratch);
  });
  const ItemTiles tiles(any, item);
  typename Kernel::Tile tile = kernel.find(any, tiles.start);
  bool is_first = true;
  for (int64_t start = tiles.start; start < tiles.end;) {
    const int64_t after = start + kAttentionTileKeys;
    typename Kernel::Tile next_start = tile;
    if (after < tiles.end) {
      next_start = kernel.find(any, after);
    } else if (next != nullptr) {
      const Queries queries{args, *next->unit, next->first_head};
      next_start = kernel.find(queries, ItemTiles(queries, *next).start);
    }
    const TileView view(any, start);
    const bool begins = start <= tiles.first || start % kAttentionPartitionKeys == 0;
    const bool ends = after % kAttentionPartitionKeys == 0 || after >= tiles.end;
    for_heads(is_first, [&](const Queries& queries, const AttentionScratch& scratch, const AttentionState& state) {
      if (begins) clear(queries, state, scratch.lane_sums);
      const bool is_last = queries.kv_head + 1 == item.last_head;
      const typename Kernel::Tile next_tile = is_last ? next_start : kernel.next_head(tile, args.cache);
      kernel.add(queries, view, tile, next_tile, scratch, state);
      tile = next_tile;
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
