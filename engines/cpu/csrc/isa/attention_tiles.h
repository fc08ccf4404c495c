#pragma once
// Attention on bfloat16 tiles, for any number of queries.
//
// Queries and weights are sums of three bfloat16 numbers, exactly; keys and values are bfloat16 as they lie in the
// cache. Products are therefore exact, as in the vector kernels, and float32 sums differ in their order alone. A step
// is 32 dimensions, or positions from a multiple of 32 on: the product of the leading parts, then those of the others.
// What a tile instruction gives a row depends on that row alone, and a position with a weight of zero changes nothing,
// so that a query's bits do not depend on the queries beside it.

#include "amx_tiles.h"
#include "attention_item.h"
#include "attention_tile_operands.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Calls f(Number<n>{}, first) for pairs, and where one is left for one, of [begin, end).
template <typename Function>
void for_pairs(int64_t begin, int64_t end, const Function& f) {
  for (; begin + 2 <= end; begin += 2) f(Number<2>{}, begin);
  if (begin < end) f(Number<1>{}, begin);
}

/// The left-hand side: the parts of row tiles that follow each other.
struct SplitRows {
  const std::uint16_t* leading;
  int64_t part;    // elements from one part of a number to the next
  int64_t stride;  // elements from row to row

  SplitRows from(int64_t row, int64_t column) const { return {leading + row * stride + column, part, stride}; }
};

/// Sums of row tile a and column tile c in tmm(2a + c), rows in tmm4 and 5, columns in tmm6 and 7.
template <class Backend, int RowTiles, int ColumnTiles>
struct SplitProduct {
  /// Calls f.operator()<tile>(a, c) for every tile of sums.
  template <class Function>
  static void for_sums(const Function& f) {
    f.template operator()<0>(0, 0);
    if constexpr (ColumnTiles == 2) f.template operator()<1>(0, 1);
    if constexpr (RowTiles == 2) f.template operator()<2>(1, 0);
    if constexpr (RowTiles == 2 && ColumnTiles == 2) f.template operator()<3>(1, 1);
  }

  static void zero() {
    for_sums([]<int Tile>(int, int) { Backend::template zero<Tile>(); });
  }

  /// One step. `first` and `second`: column tiles, [16 pairs][16][2], rows `column_bytes` apart.
  static void multiply(const SplitRows& rows, const std::uint16_t* first, const std::uint16_t* second,
                       int64_t column_bytes) {
    Backend::template load<6>(first, column_bytes);
    if constexpr (ColumnTiles == 2) Backend::template load<7>(second, column_bytes);
    for (int64_t part = 0; part < kFloatParts; ++part) multiply_part(rows.leading + part * rows.part, rows.stride);
  }

  /// sums[a][c] begins at out + 16 a stride + 16 c.
  static void store(float* out, int64_t stride) {
    for_sums([&]<int Tile>(int a, int c) {
      Backend::template store<Tile>(out + 16 * a * stride + 16 * c, stride * static_cast<int64_t>(sizeof(float)));
    });
  }

 private:
  static void multiply_part(const std::uint16_t* rows, int64_t stride) {
    Backend::template load<4>(rows, 2 * stride);
    Backend::template dot_bfloat16<0, 4, 6>();
    if constexpr (ColumnTiles == 2) Backend::template dot_bfloat16<1, 4, 7>();
    if constexpr (RowTiles == 2) {
      Backend::template load<5>(rows + 16 * stride, 2 * stride);
      Backend::template dot_bfloat16<2, 5, 6>();
      if constexpr (ColumnTiles == 2) Backend::template dot_bfloat16<3, 5, 7>();
    }
  }
};

/// Calls f(Number<n>{}, first tile, first row, last row) for one or two tiles of 16 rows that hold some of `rows`.
template <typename Function>
void for_row_tiles(Range rows, const Function& f) {
  for_pairs(rows.begin / 16, (rows.end + 15) / 16, [&](auto tiles, int64_t t) {
    f(tiles, t, max64(rows.begin, 16 * t), min64(rows.end, 16 * (t + tiles.value)) - 1);
  });
}

/// scores[query][position] of the queries that see anything, in groups of keys that any of a tile's sees.
/// `fetch(group, d)` is called once for each step of such a group, on the way.
template <class Backend, class Fetch>
void score(const TileView& view, const SplitRows& queries, const std::uint16_t* const* keys, int64_t head_dim,
           float* scores, const Fetch& fetch) {
  const Range active = view.queries();
  for_row_tiles(active, [&](auto tiles, int64_t t, int64_t first, int64_t last) {
    for_pairs(view.of(first).begin / kKeyGroup, (view.of(last).end + kKeyGroup - 1) / kKeyGroup,
              [&](auto groups, int64_t g) {
                using Product = SplitProduct<Backend, tiles.value, groups.value>;
                Product::zero();
                for (int64_t d = 0; d < head_dim; d += 32) {
                  const int64_t step = d * kKeyGroup;
                  if (first == active.begin) {
                    for (int64_t i = g; i < g + groups.value; ++i) fetch(i, d);
                  }
                  Product::multiply(queries.from(16 * t, d), keys[g] + step, keys[g + groups.value - 1] + step, 64);
                }
                Product::store(scores + 16 * t * kAttentionTileKeys + g * kKeyGroup, kAttentionTileKeys);
              });
  });
}

/// sums[query] = sums[query] * factors[query] + weights[query][position] * values[position], queries [begin, end).
/// values: ValuePairs, stride the dimensions.
template <class Backend>
void add_pairs(const TileView& view, Range queries, const SplitRows& weights, const std::uint16_t* values,
               int64_t stride, const float* factors, float* sums) {
  for_row_tiles(queries, [&](auto tiles, int64_t t, int64_t first, int64_t last) {
    const int64_t first_position = view.of(first).begin / 32 * 32;
    const int64_t last_position = view.of(last).end;
    for_pairs(0, stride / 16, [&](auto vectors, int64_t v) {
      using Product = SplitProduct<Backend, tiles.value, vectors.value>;
      Product::zero();
      for (int64_t j = first_position; j < last_position; j += 32) {
        const std::uint16_t* step = values + j * stride + 32 * v;
        Product::multiply(weights.from(16 * t, j), step, step + 32, 4 * stride);
      }
      alignas(64) float products[2 * 16][2 * 16];
      Product::store(products[0], 32);
      for (int64_t i = first; i <= last; ++i) {
        const F16 factor = splat(factors[i]);
        for (int c = 0; c < vectors.value; ++c) {
          float* sum = sums + i * stride + 16 * (v + c);
          store(sum, fma(load(sum), factor, load(products[i - 16 * t] + 16 * c)));
        }
      }
    });
  });
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
