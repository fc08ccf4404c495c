#pragma once
// Keys and values of a tile as groups of 16 slots that lie in one block, keys with a lane per slot.

#include "../attention_layout.h"
#include "kv_rows.h"

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
  int64_t first = 0;
  int64_t last = 0;

  /// The same groups of the next KV head.
  TileGroups next_head(const KvCache& cache) const {
    TileGroups next = *this;
    for (int64_t g = first; g < last; ++g) {
      next.keys[g] += head_block_bytes(cache);
      next.values[g] += head_block_bytes(cache);
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
    const int64_t offset = head_block_offset(cache, block_table[position / cache.block_size], kv_head) +
                           position % cache.block_size * row_bytes;
    groups.keys[g] = static_cast<const std::uint8_t*>(cache.k) + offset;
    groups.values[g] = static_cast<const std::uint8_t*>(cache.v) + offset;
  }
  return groups;
}

/// The even, or the odd, ones of 32 dimensions of a row of values.
template <ElementType Type>
static inline F16 load_value_pairs(const std::uint8_t* row, bool is_odd) {
  static_assert(Type == ElementType::kBfloat16);
  return is_odd ? load_odd_bfloat16(row) : load_even_bfloat16(row);
}

/// Dimension 2 i, or 2 i + 1 if `IsOdd`, of 16 keys from their pairs i.
template <ElementType Type, bool IsOdd>
static inline F16 load_key_dimension(const std::uint8_t* pairs) {
  static_assert(Type == ElementType::kBfloat16);
  return IsOdd ? load_odd_bfloat16(pairs) : load_even_bfloat16(pairs);
}

}  // namespace nybble::NYBBLE_ISA
