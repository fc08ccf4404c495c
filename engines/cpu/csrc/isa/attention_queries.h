#pragma once
// The query vectors of one unit and KV head, and which positions of a tile each of them sees.

#include "../attention_layout.h"
#include "kv_rows.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

struct Range {
  int64_t begin, end;
};

/// A number that a generic function takes as a constant.
template <int Value>
struct Number {
  static constexpr int value = Value;
};

/// Vector i is row i / group, head i % group of the KV head.
struct Queries {
  const AttentionArgs& args;
  const AttentionUnit& unit;
  int64_t kv_head;
  int64_t group = args.num_heads / args.cache.num_kv_heads;
  int64_t count = unit.num_rows * group;
  int64_t stride = round_up_to_lanes(args.cache.head_dim);

  int64_t oldest() const {
    return args.sliding_window > 0 ? max64(0, unit.first_position - args.sliding_window + 1) : 0;
  }
  int64_t last() const { return unit.first_position + unit.num_rows - 1; }
  int64_t offset(int64_t row) const {  // of a row's first vector in q and out; the others follow it
    return ((unit.first_row + row) * args.num_heads + kv_head * group) * args.cache.head_dim;
  }
};

constexpr float kLog2E = 1.44269504F;  // scores are exponents of two

/// Query vectors times scale and log2(e), rows of `stride`.
static inline void load_queries(const Queries& queries, float* q) {
  const F16 scale = splat(queries.args.scale * kLog2E);
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

/// What the rows see of the tile at position `start`. Neither end of a range decreases from row to row.
struct TileView {
  Range seen[kAttentionUnitQueries];  // of each row, empty where it sees nothing
  Range rows;                         // that see anything
  int64_t group;

  TileView(const Queries& queries, int64_t start) : rows{0, queries.unit.num_rows}, group(queries.group) {
    const int64_t first = queries.unit.first_position - start;
    const int64_t window = queries.args.sliding_window > 0 ? queries.args.sliding_window : first + rows.end;
    for (int64_t row = 0; row < rows.end; ++row) {
      seen[row].begin = min64(kAttentionTileKeys, max64(0, first + row - window + 1));
      seen[row].end = min64(kAttentionTileKeys, max64(0, first + row + 1));
    }
    while (rows.begin < rows.end && seen[rows.begin].end <= 0) ++rows.begin;
    while (rows.end > rows.begin && seen[rows.end - 1].begin >= kAttentionTileKeys) --rows.end;
  }
  /// Of query vector i.
  Range of(int64_t i) const { return seen[i / group]; }
  Range queries() const { return {rows.begin * group, rows.end * group}; }
  /// Positions that any row sees.
  Range positions() const { return {seen[rows.begin].begin, seen[rows.end - 1].end}; }
};

}  // namespace nybble::NYBBLE_ISA
