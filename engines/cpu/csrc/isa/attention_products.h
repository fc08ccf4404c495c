#pragma once
// The two products of attention as register tiles: queries x keys and weights x values.
//
// Every output is one chain of fused multiply-adds over ascending k, whatever the tile's size.

#include "attention_queries.h"
#include "kv_tiles.h"

namespace nybble::NYBBLE_ISA {

#if defined(NYBBLE_ISA_AVX512)
constexpr int kQueryTile = 6;  // 24 accumulators, 4 keys and a query in 32 registers
constexpr int kVectorTile = 4;
#elif defined(NYBBLE_ISA_AVX2) || defined(__aarch64__)
constexpr int kQueryTile = 6;
constexpr int kVectorTile = 1;
#else
constexpr int kQueryTile = 2;
constexpr int kVectorTile = 1;
#endif

/// Groups of keys that few queries take at once: of E4M3 a line is four dimensions, which wait in registers.
template <ElementType Type>
constexpr int kGroupTile = Type == ElementType::kFloat8E4m3 && kVectorTile > 2 ? 2 : kVectorTile;

/// Lines asked for are brought to L2, and from there to L1 this far ahead; at a group's end that is the next head's.
constexpr int64_t kNearKeyBytes = 256;
constexpr int64_t kNearValueBytes = 1024;

/// Calls f(Number<n>{}, first) for tiles of n query vectors that cover [begin, end).
template <typename Function>
static inline void for_query_tiles(int64_t begin, int64_t end, const Function& f) {
  for (; begin + kQueryTile <= end; begin += kQueryTile) f(Number<kQueryTile>{}, begin);
  if constexpr (kQueryTile > 4) {
    for (; begin + 4 <= end; begin += 4) f(Number<4>{}, begin);
    for (; begin + 2 <= end; begin += 2) f(Number<2>{}, begin);
  }
  for (; begin < end; ++begin) f(Number<1>{}, begin);
}

/// The same for tiles of n vectors of 16 lanes.
template <int Largest = kVectorTile, typename Function>
static inline void for_vector_tiles(int64_t begin, int64_t end, const Function& f) {
  for (; begin + Largest <= end; begin += Largest) f(Number<Largest>{}, begin);
  if constexpr (Largest > 1) {
    for (; begin + 2 <= end; begin += 2) f(Number<2>{}, begin);
    for (; begin < end; ++begin) f(Number<1>{}, begin);
  }
}

/// The right-hand side of a product in a packed tile, from its first column on.
struct PackedTile {
  const float* data;
  int64_t stride;

  F16 vector(int64_t k, int v) const { return load(data + k * stride + 16 * v); }
  template <int Vectors>
  void fetch() const {}
  PackedTile from(int64_t column) const { return {data + column, stride}; }
};

/// The same straight from the cache: what few queries read once need not be packed. head_dim is a multiple of 16.
template <ElementType Type>
struct CachedTile {
  const TileRows& tile;
  Ahead& ahead;
  int64_t column;

  F16 vector(int64_t k, int v) const { return load_elements<Type>(tile, k, column + 16 * v); }
  template <int Vectors>
  void fetch() const {
    for (int v = 0; v < Vectors; ++v) ahead.fetch((column + 16 * v) * element_bytes(Type));
  }
  CachedTile from(int64_t first) const { return {tile, ahead, column + first}; }
};

/// The same from groups of slots. Every line that is read asks for the line of `ahead` in its place.
template <ElementType Type>
struct GroupedValues {
  const std::uint8_t* const* groups;
  const std::uint8_t* const* ahead;
  int64_t row_bytes;
  int64_t column;

  GroupedValues from(int64_t first) const { return {groups, ahead, row_bytes, column + first}; }
};

/// acc[q][v] += a[q][k] * b[k][v] for k in [begin, end). Inlined by force: called, it keeps its sums in memory.
template <int Queries, int Vectors, typename Tile>
[[gnu::always_inline]] static inline void multiply(const float* a, int64_t a_stride, const Tile& b, int64_t begin,
                                                   int64_t end, F16 (&acc)[Queries][Vectors]) {
  for (int64_t k = begin; k < end; ++k) {
    F16 row[Vectors];
    b.template fetch<Vectors>();
    for (int v = 0; v < Vectors; ++v) row[v] = b.vector(k, v);
    for (int q = 0; q < Queries; ++q) {
      const F16 factor = splat(a[q * a_stride + k]);
      for (int v = 0; v < Vectors; ++v) acc[q][v] = fma(factor, row[v], acc[q][v]);
    }
  }
}

template <ElementType Type, int Queries, int Vectors>
[[gnu::always_inline]] static inline void multiply(const float* a, int64_t a_stride, const GroupedValues<Type>& b,
                                                   int64_t begin, int64_t end, F16 (&acc)[Queries][Vectors]) {
  constexpr int64_t kBytes = element_bytes(Type);
  const std::int64_t first_byte = b.column / 32 * 32 * kBytes;
  const int odd = b.column % 32 != 0 ? 1 : 0;  // where a tile is one vector
  for (int64_t k = begin; k < end;) {
    const std::uint8_t* row = b.groups[k / kKeyGroup] + k % kKeyGroup * b.row_bytes + first_byte;
    const int64_t ahead = b.ahead[k / kKeyGroup] - b.groups[k / kKeyGroup];
    for (const int64_t last = min64(end, (k / kKeyGroup + 1) * kKeyGroup); k < last; ++k, row += b.row_bytes) {
      for (int64_t byte = 0; byte < Vectors * 16 * kBytes; byte += 64) {
        __builtin_prefetch(row + byte + ahead, 0, 2);
        __builtin_prefetch(row + byte + kNearValueBytes, 0, 3);
      }
      constexpr int kLoaded = Vectors > 1 ? Vectors : 2;
      F16 values[kLoaded];
      load_pairs<Type>(row, values);
      for (int q = 0; q < Queries; ++q) {
        const F16 factor = splat(a[q * a_stride + k]);
        for (int v = 0; v < Vectors; ++v) acc[q][v] = fma(factor, values[Vectors > 1 ? v : odd], acc[q][v]);
      }
    }
  }
}

/// scores[q][16 v ..] of `Queries` queries against keys [stride][kAttentionTileKeys], dimensions [begin, end): those
/// from 0 on begin the sums, later ones add to them.
template <int Queries, int Vectors>
static inline void score_tile(const float* q, const float* keys, int64_t stride, int64_t begin, int64_t end,
                              float* scores) {
  F16 acc[Queries][Vectors];
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) {
      acc[i][v] = begin == 0 ? splat(0.0F) : load(scores + i * kAttentionTileKeys + 16 * v);
    }
  }
  multiply(q, stride, PackedTile{keys, kAttentionTileKeys}, begin, end, acc);
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) store(scores + i * kAttentionTileKeys + 16 * v, acc[i][v]);
  }
}

/// scores[q][16 v ..] of `Queries` queries against `Vectors` groups of keys in the cache, all dimensions. Every line
/// that is read asks for the line of `ahead` in its place.
template <ElementType Type, int Queries, int Vectors>
static inline void score_groups(const float* q, const std::uint8_t* const* groups, const std::uint8_t* const* ahead,
                                int64_t head_dim, float* scores) {
  constexpr int64_t kBytes = element_bytes(Type);
  constexpr int kDimensions = 64 / (kKeyGroup * kBytes);  // of a line
  F16 acc[Queries][Vectors];
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) acc[i][v] = splat(0.0F);
  }
  for (int64_t d = 0; d < head_dim; d += kDimensions) {
    const int64_t byte = d * kKeyGroup * kBytes;
    for (int v = 0; v < Vectors; ++v) {
      __builtin_prefetch(ahead[v] + byte, 0, 2);
      __builtin_prefetch(groups[v] + byte + kNearKeyBytes, 0, 3);
    }
    F16 keys[Vectors][kDimensions];
    for (int v = 0; v < Vectors; ++v) load_pairs<Type>(groups[v] + byte, keys[v]);
    for (int k = 0; k < kDimensions; ++k) {
      for (int i = 0; i < Queries; ++i) {
        const F16 factor = splat(q[i * head_dim + d + k]);
        for (int v = 0; v < Vectors; ++v) acc[i][v] = fma(factor, keys[v][k], acc[i][v]);
      }
    }
  }
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) store(scores + i * kAttentionTileKeys + 16 * v, acc[i][v]);
  }
}

/// sums[q] = sums[q] * factors[q] + weights[q][j] * values[j] over j in [begin, end); `factors` null: 1.
template <int Queries, int Vectors, typename Tile>
static inline void value_tile(const float* weights, const float* factors, const Tile& values, int64_t begin,
                              int64_t end, float* sums, int64_t stride) {
  F16 acc[Queries][Vectors];
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) {
      acc[i][v] = load(sums + i * stride + 16 * v);
      if (factors != nullptr) acc[i][v] = acc[i][v] * splat(factors[i]);
    }
  }
  multiply(weights, kAttentionTileKeys, values, begin, end, acc);
  for (int i = 0; i < Queries; ++i) {
    for (int v = 0; v < Vectors; ++v) store(sums + i * stride + 16 * v, acc[i][v]);
  }
}

/// The values of a tile for `Count` queries from `first` on. Rows see different positions: what all see is one product,
/// the rest goes query by query.
template <int Count, typename Tile>
static inline void add_values(const TileView& view, const Tile& values, int64_t stride, int64_t first,
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

}  // namespace nybble::NYBBLE_ISA
