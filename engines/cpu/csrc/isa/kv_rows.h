#pragma once
// Where the rows of the paged KV cache lie, and their elements as float32.

#include "e4m3.h"
#include "half_floats.h"

namespace nybble::NYBBLE_ISA {

static inline constexpr int64_t element_bytes(ElementType type) {
  if (type == ElementType::kFloat8E4m3) return 1;
  return type == ElementType::kFloat32 ? 4 : 2;
}

constexpr int kNanScale = 255;  // scale byte of a row that held a NaN or an infinity

/// Bytes of one head's rows of one block.
static inline int64_t head_block_bytes(const KvCache& cache) {
  return cache.block_size * cache.head_dim * element_bytes(cache.element_type);
}

/// Byte offset of a block, of keys and of values: all heads' rows, then for E4M3 all heads' scales.
static inline int64_t block_offset(const KvCache& cache, int64_t block) {
  const int64_t scale_bytes = cache.element_type == ElementType::kFloat8E4m3 ? cache.block_size : 0;
  return block * cache.num_kv_heads * (head_block_bytes(cache) + scale_bytes);
}

/// Byte offset of a head's rows of a block, of keys and of values.
static inline int64_t head_block_offset(const KvCache& cache, int64_t block, int64_t kv_head) {
  return block_offset(cache, block) + kv_head * head_block_bytes(cache);
}

/// Byte offset of the scales of those rows.
static inline int64_t head_scales_offset(const KvCache& cache, int64_t block, int64_t kv_head) {
  return block_offset(cache, block) + cache.num_kv_heads * head_block_bytes(cache) + kv_head * cache.block_size;
}

/// Keys or values of a tile's positions. Those outside the range that was asked for point to zeros.
struct TileRows {
  const std::uint8_t* rows[kAttentionTileKeys];
};

/// Rows of positions [begin, end) of the tile that starts at position `start`.
static inline void find_rows(const KvCache& cache, const void* base, const std::int32_t* block_table, int64_t kv_head,
                             int64_t start, int64_t begin, int64_t end, const void* zeros, TileRows& out) {
  const int64_t row_bytes = cache.head_dim * element_bytes(cache.element_type);
  for (int64_t j = 0; j < kAttentionTileKeys; ++j) {
    if (j == begin) j = end;
    if (j >= kAttentionTileKeys) break;
    out.rows[j] = static_cast<const std::uint8_t*>(zeros);
  }
  int64_t block = (start + begin) / cache.block_size;
  int64_t in_block = (start + begin) % cache.block_size;
  for (int64_t j = begin; j < end; ++block, in_block = 0) {
    const auto* source = static_cast<const std::uint8_t*>(base) + head_block_offset(cache, block_table[block], kv_head);
    for (; in_block < cache.block_size && j < end; ++in_block, ++j) out.rows[j] = source + in_block * row_bytes;
  }
}

/// Elements [index, index + 16) of a row, zeros from `count` on; of E4M3 2^-8 times the numbers, without their scale.
template <ElementType Type>
static inline F16 load_elements(const TileRows& tile, int64_t row, int64_t index, int64_t count) {
  constexpr int64_t kBytes = element_bytes(Type);
  const std::uint8_t* source = tile.rows[row] + index * kBytes;
  alignas(64) std::uint8_t rest[64];
  if (index + 16 > count) {
    std::memset(rest, 0, sizeof(rest));
    std::memcpy(rest, source, static_cast<std::size_t>((count - index) * kBytes));
    source = rest;
  }
  if constexpr (Type == ElementType::kFloat32) {
    return load(reinterpret_cast<const float*>(source));
  } else if constexpr (Type == ElementType::kFloat8E4m3) {
    return load_small_e4m3(source);
  } else {
    return load_bfloat16(reinterpret_cast<const std::uint16_t*>(source));
  }
}

template <ElementType Type>
static inline F16 load_elements(const TileRows& tile, int64_t row, int64_t index) {
  return load_elements<Type>(tile, row, index, index + 16);
}

}  // namespace nybble::NYBBLE_ISA
