#pragma once
// Where the rows of the paged KV cache lie, and their elements as float32.

#include "simd.h"

namespace nybble::NYBBLE_ISA {

static inline int64_t element_bytes(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

/// Bytes of one head's rows of one block.
static inline int64_t head_block_bytes(const KvCache& cache) {
  return cache.block_size * cache.head_dim * element_bytes(cache.element_type);
}

/// Byte offset of a head's rows of a block, of keys and of values.
static inline int64_t head_block_offset(const KvCache& cache, int64_t block, int64_t kv_head) {
  return (block * cache.num_kv_heads + kv_head) * head_block_bytes(cache);
}

/// Keys or values of a tile's positions. Those outside the range that was asked for point to zeros.
struct TileRows {
  const std::uint8_t* rows[kAttentionTileKeys];
};

/// Rows of positions [begin, end) of the tile that starts at position `start`.
static inline void find_rows(const KvCache& cache, const void* base, const std::int32_t* block_table, int64_t kv_head,
                             int64_t start, int64_t begin, int64_t end, const void* zeros, TileRows& out) {
  const int64_t row_bytes = cache.head_dim * element_bytes(cache.element_type);
  for (int64_t j = 0; j < begin; ++j) out.rows[j] = static_cast<const std::uint8_t*>(zeros);
  int64_t block = (start + begin) / cache.block_size;
  int64_t in_block = (start + begin) % cache.block_size;
  for (int64_t j = begin; j < end; ++block, in_block = 0) {
    const auto* source = static_cast<const std::uint8_t*>(base) + head_block_offset(cache, block_table[block], kv_head);
    for (; in_block < cache.block_size && j < end; ++in_block, ++j) out.rows[j] = source + in_block * row_bytes;
  }
  for (int64_t j = end; j < kAttentionTileKeys; ++j) out.rows[j] = static_cast<const std::uint8_t*>(zeros);
}

template <ElementType Type>
static inline F16 load_elements(const std::uint8_t* row, int64_t index) {
  if constexpr (Type == ElementType::kFloat32) {
    return load(reinterpret_cast<const float*>(row) + index);
  } else {
    return load_bfloat16(reinterpret_cast<const std::uint16_t*>(row) + index);
  }
}

/// Elements [index, index + 16) of a row, zeros from `count` on.
template <ElementType Type>
static inline F16 load_elements(const std::uint8_t* row, int64_t index, int64_t count) {
  if (index + 16 <= count) return load_elements<Type>(row, index);
  constexpr int64_t kBytes = Type == ElementType::kFloat32 ? 4 : 2;
  alignas(64) std::uint8_t rest[64] = {};
  std::memcpy(rest, row + index * kBytes, static_cast<std::size_t>((count - index) * kBytes));
  return load_elements<Type>(rest, 0);
}

}  // namespace nybble::NYBBLE_ISA
