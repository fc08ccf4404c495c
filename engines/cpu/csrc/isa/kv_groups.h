#pragma once
// Keys and values of a tile as groups of 16 slots that lie in one block, keys with a lane per slot.

#include "../attention_layout.h"
#include "half_floats.h"
#include "kv_scales.h"

namespace nybble::NYBBLE_ISA {

constexpr int64_t kTileGroups = kAttentionTileKeys / kKeyGroup;

/// Bytes of one group, of keys and of values.
template <ElementType Type>
static inline int64_t group_bytes(const KvCache& cache) {
  return kKeyGroup * cache.head_dim * element_bytes(Type);
}

/// Where groups [first, last) of a tile lie, those of one KV head.
struct TileGroups {
  const std::uint8_t* keys[kTileGroups];
  const std::uint8_t* values[kTileGroups];
  int64_t scales[kTileGroups];  // byte offset in the cache, of keys and of values
  int64_t first = 0;
  int64_t last = 0;

  /// The same groups of the next KV head.
  TileGroups next_head(const KvCache& cache) const {
    TileGroups next = *this;
    for (int64_t g = first; g < last; ++g) {
      next.keys[g] += head_block_bytes(cache);
      next.values[g] += head_block_bytes(cache);
      next.scales[g] += cache.block_size;
    }
    return next;
  }
  /// With groups of `other` where this tile has none.
  TileGroups completed_by(const TileGroups& other) const {
    TileGroups all = *this;
    for (int64_t g = 0; g < kTileGroups; ++g) {
      if (g >= first && g < last) continue;
      all.keys[g] = other.keys[g];
      all.values[g] = other.values[g];
    }
    return all;
  }
};

/// Groups that hold positions [begin, end) of the tile at position `start`.
static inline TileGroups find_groups(const KvCache& cache, const std::int32_t* block_table, int64_t kv_head,
                                     int64_t start, int64_t begin, int64_t end) {
  TileGroups groups{};
  groups.first = begin / kKeyGroup;
  groups.last = (end + kKeyGroup - 1) / kKeyGroup;
  const int64_t row_bytes = cache.head_dim * element_bytes(cache.element_type);
  for (int64_t g = groups.first; g < groups.last; ++g) {
    const int64_t position = start + g * kKeyGroup;
    const int64_t block = block_table[position / cache.block_size];
    const int64_t in_block = position % cache.block_size;
    const int64_t offset = head_block_offset(cache, block, kv_head) + in_block * row_bytes;
    groups.keys[g] = static_cast<const std::uint8_t*>(cache.k) + offset;
    groups.values[g] = static_cast<const std::uint8_t*>(cache.v) + offset;
    groups.scales[g] = head_scales_offset(cache, block, kv_head) + in_block;
  }
  return groups;
}

/// Scales of a tile's keys and values, where the cache has any.
template <ElementType Type>
static inline auto scales_of(const KvCache& cache, const TileGroups& groups) {
  if constexpr (Type == ElementType::kFloat8E4m3) {
    TileScales scales;
    for (int64_t g = groups.first; g < groups.last; ++g) {
      scales.widen(static_cast<const std::uint8_t*>(cache.k) + groups.scales[g],
                   static_cast<const std::uint8_t*>(cache.v) + groups.scales[g], g * kKeyGroup);
    }
    return scales;
  } else {
    return Unscaled{};
  }
}

/// Asks for what scales_of() will read.
template <ElementType Type>
static inline void fetch_scales(const KvCache& cache, const TileGroups& groups) {
  if constexpr (Type == ElementType::kFloat8E4m3) {
    for (int64_t g = groups.first; g < groups.last; ++g) {
      __builtin_prefetch(static_cast<const std::uint8_t*>(cache.k) + groups.scales[g], 0, 3);
      __builtin_prefetch(static_cast<const std::uint8_t*>(cache.v) + groups.scales[g], 0, 3);
    }
  }
}

/// Sixteen pairs of elements as float32: of a row of values the even or the odd ones of 32 dimensions, of keys
/// dimension 2 i or 2 i + 1 of 16 slots. E4M3 numbers are 2^-8 times theirs, without their scale.
template <ElementType Type, bool IsOdd>
static inline F16 load_pairs(const std::uint8_t* pairs) {
  static_assert(Type != ElementType::kFloat32);
  if constexpr (Type == ElementType::kFloat8E4m3) {
    return IsOdd ? load_odd_small_e4m3(pairs) : load_even_small_e4m3(pairs);
  } else {
    return IsOdd ? load_odd_bfloat16(pairs) : load_even_bfloat16(pairs);
  }
}

/// `Count` vectors: the even and the odd ones of each 16 pairs in turn.
template <ElementType Type, int Count>
static inline void load_pairs(const std::uint8_t* pairs, F16 (&out)[Count]) {
  static_assert(Count % 2 == 0);
#if defined(NYBBLE_ISA_AVX512)
  if constexpr (Type == ElementType::kFloat8E4m3 && Count == 4) return load_small_e4m3_pairs(pairs, out);
#endif
  for (int v = 0; v < Count; v += 2) {
    out[v] = load_pairs<Type, false>(pairs + v * kKeyGroup * element_bytes(Type));
    out[v + 1] = load_pairs<Type, true>(pairs + v * kKeyGroup * element_bytes(Type));
  }
}

}  // namespace nybble::NYBBLE_ISA
