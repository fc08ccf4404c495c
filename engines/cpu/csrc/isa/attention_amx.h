#pragma once
// Attention over a bfloat16 or E4M3 KV cache on the tiles of a Backend (amx_tiles.h).

#include "attention_tile_sources.h"
#include "attention_tiles.h"
#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// For attend_item. `memory`: what HeadsScratch leaves, TileOperands::floats of it.
template <class Backend, class Source>
class TileKernel {
 public:
  using Tile = typename Source::Tile;

  explicit TileKernel(const TileOperands& operands) : operands_(operands) {}

  Tile find(const Queries& queries, int64_t start) const { return Source::find(queries, start); }
  Tile next_head(const Tile& tile, const KvCache& cache) const { return Source::next_head(tile, cache); }

  void load(const Queries& queries, const AttentionScratch& scratch) const {
    load_query_parts(queries, reinterpret_cast<std::uint16_t*>(scratch.q));
  }

  void add(const Queries& queries, const TileView& view, const Tile& tile, const Tile& next,
           const AttentionScratch& scratch, const AttentionState& state) const {
    const int64_t head_dim = queries.args.cache.head_dim;
    const int64_t num_padded = round_up_to_lanes(queries.count);
    const Tile ahead = Source::completed(next, tile);
    Source::fetch_scales(queries.args.cache, next);
    KeyGroups keys;
    Source::find_keys(tile, view.positions(), head_dim, operands_.keys, keys);
    const SplitRows rows{reinterpret_cast<const std::uint16_t*>(scratch.q), num_padded * head_dim, head_dim};
    score<Backend>(view, rows, keys, head_dim, scratch.scores,
                   [&](int64_t group, int64_t d) { Source::fetch_keys(tile, ahead, group, d); });
    const auto scales = Source::scales(queries.args.cache, tile);
    raise_largest(view, scratch, state, scales);
    weigh(view, scratch, state, scales);
    split_weights(view, scratch.scores, num_padded, operands_.weights);
    const auto load_values = [&](int64_t j, int64_t d) {
      Source::fetch_values(tile, ahead, j, d, head_dim);
      return Source::load_values(tile, j, d, head_dim);
    };
    add_values(queries, view, load_values, scratch, state);
  }

 private:
  /// Zero times a value that is not finite is not zero: where there is one, each row's values by themselves.
  template <class Load>
  void add_values(const Queries& queries, const TileView& view, const Load& load, const AttentionScratch& scratch,
                  const AttentionState& state) const {
    const int64_t head_dim = queries.args.cache.head_dim;
    const SplitRows weights{operands_.weights, round_up_to_lanes(queries.count) * kAttentionTileKeys,
                            kAttentionTileKeys};
    const ValuePairs values(head_dim, operands_.values);
    const auto add = [&](Range of) {
      add_pairs<Backend>(view, of, weights, operands_.values, head_dim, scratch.factors, state.values);
    };
    if (values.pack(view.positions(), load)) return add(view.queries());
    for (int64_t row = view.rows.begin; row < view.rows.end; ++row) {
      values.pack(view.seen[row], load);
      add({row * view.group, (row + 1) * view.group});
    }
  }

  TileOperands operands_;
};

template <class Backend, template <ElementType> class Source>
void attend_item(const TileOperands& operands, const AttentionArgs& args, const AttentionItem& item,
                 const AttentionItem* next, float* workspace, float* states, int64_t state_floats) {
  const auto attend = [&](const auto& kernel) {
    attend_item(kernel, args, item, next, workspace, states, state_floats);
  };
  if (args.cache.element_type == ElementType::kFloat8E4m3) {
    attend(TileKernel<Backend, Source<ElementType::kFloat8E4m3>>(operands));
  } else {
    attend(TileKernel<Backend, Source<ElementType::kBfloat16>>(operands));
  }
}

template <class Backend>
void attend_on_tiles(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
                     float* states, int64_t state_floats) {
  if (!fits_tiles(args.cache)) return attention(args, item, next, workspace, states, state_floats);
  const int64_t num_queries = item.unit->num_rows * (args.num_heads / args.cache.num_kv_heads);
  const TileOperands operands = TileOperands::at(workspace, num_queries, args.cache.head_dim);
  float* rest = workspace + TileOperands::floats(num_queries, args.cache.head_dim);
  Backend::configure(tiles_of_rows(static_cast<int>(min64(num_queries, 16))));
  if (keys_in_groups(args.cache)) {
    attend_item<Backend, GroupedSource>(operands, args, item, next, rest, states, state_floats);
  } else {
    attend_item<Backend, RowSource>(operands, args, item, next, rest, states, state_floats);
  }
  Backend::release();
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
