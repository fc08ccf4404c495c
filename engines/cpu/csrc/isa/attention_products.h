#pragma once
// The two products of attention as register tiles: queries x keys and weights x values.
//
// Every output is one chain of fused multiply-adds over ascending k, whatever the tile's size.

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

template <int Value>
struct Number {
  static constexpr int value = Value;
};

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
template <typename Function>
static inline void for_vector_tiles(int64_t begin, int64_t end, const Function& f) {
  for (; begin + kVectorTile <= end; begin += kVectorTile) f(Number<kVectorTile>{}, begin);
  if constexpr (kVectorTile > 1) {
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

}  // namespace nybble::NYBBLE_ISA
