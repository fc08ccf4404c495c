#pragma once
// How much memory attention's kernels need, for the caller that provides it. static: see isa/simd.h.

#include "kernel_table.h"

namespace nybble {

/// Query vectors that share a tile of keys and values: a unit has this many (rows times query heads per KV head), or
/// one row where a KV head has more heads.
constexpr std::int64_t kAttentionUnitQueries = 128;
constexpr std::int64_t kMaxHeadsPerKvHead = 64;

static inline std::int64_t round_up_to_lanes(std::int64_t count) { return (count + 15) / 16 * 16; }

/// Slots whose keys lie side by side, one lane each.
constexpr std::int64_t kKeyGroup = 16;

/// Whether a block's keys lie in groups of kKeyGroup slots, [head_dim / 2][kKeyGroup][2], or in rows of head_dim. With
/// groups, a vector of sums over values holds the even dimensions of 32, the next one the odd ones: that takes half
/// the instructions to read.
static inline bool keys_in_groups(const KvCache& cache) {
  return cache.element_type != ElementType::kFloat32 && cache.block_size % kKeyGroup == 0 && cache.head_dim % 32 == 0;
}

/// Up to this many query vectors read keys and values straight from the cache, for all KV heads of a tile before the
/// next tile: blocks are then read whole.
constexpr std::int64_t kFewQueries = 16;

static inline bool few_queries(const KvCache& cache, std::int64_t num_queries) {
  return keys_in_groups(cache) && num_queries <= kFewQueries;
}

/// Whether attention's products may run on bfloat16 tiles: elements that bfloat16 holds, whole steps of 32 dimensions.
static inline bool fits_tiles(const KvCache& cache) {
  return cache.element_type != ElementType::kFloat32 && cache.head_dim % 32 == 0;
}

/// Softmax of `num_queries` queries over some positions, in one allocation of float32.
struct AttentionState {
  float* largest;  // [queries] score; -inf where no position was seen
  float* totals;   // [queries] sum of the weights; 0 where no position was seen
  float* values;   // [queries][stride] weighted sum, not yet divided by the total

  static std::int64_t floats(std::int64_t num_queries, std::int64_t stride) {
    return round_up_to_lanes(num_queries) * (2 + stride);
  }
  static AttentionState at(float* memory, std::int64_t num_queries) {
    const std::int64_t padded = round_up_to_lanes(num_queries);
    return {memory, memory + padded, memory + 2 * padded};
  }
};

/// Scratch of one thread for one unit.
struct AttentionScratch {
  float* q;          // [queries][stride] times scale and log2(e)
  float* scores;     // [queries][kAttentionTileKeys] then weights
  float* tile;       // keys [stride][kAttentionTileKeys], then values [kAttentionTileKeys][stride]
  float* factors;    // [queries] what earlier sums are multiplied by
  float* lane_sums;  // [queries][16] weights by position modulo 16
  float* zeros;      // [stride] a row that does not exist
  AttentionState partition;

  static std::int64_t floats(std::int64_t num_queries, std::int64_t stride) {
    return round_up_to_lanes(num_queries) * (stride + kAttentionTileKeys + 1 + 16) + stride * (kAttentionTileKeys + 1) +
           AttentionState::floats(num_queries, stride);
  }
  static AttentionScratch at(float* memory, std::int64_t num_queries, std::int64_t stride) {
    const std::int64_t padded = round_up_to_lanes(num_queries);
    AttentionScratch scratch{};
    scratch.q = memory;
    scratch.scores = scratch.q + padded * stride;
    scratch.tile = scratch.scores + padded * kAttentionTileKeys;
    scratch.factors = scratch.tile + stride * kAttentionTileKeys;
    scratch.lane_sums = scratch.factors + padded;
    scratch.zeros = scratch.lane_sums + padded * 16;
    scratch.partition = AttentionState::at(scratch.zeros + stride, num_queries);
    return scratch;
  }
};

/// bfloat16 numbers whose sum is any float32 number, for products on bfloat16 tiles.
constexpr std::int64_t kFloatParts = 3;

/// Scratch of one thread for the heads of one item: `scores` and `factors` serve one head after the other, the rest is
/// each head's own.
struct HeadsScratch {
  float* scores;
  float* factors;
  float* heads;
  std::int64_t head_floats;

  static std::int64_t floats(std::int64_t num_heads, std::int64_t num_queries, std::int64_t stride) {
    return round_up_to_lanes(num_queries) * (kAttentionTileKeys + 1) + num_heads * floats_per_head(num_queries, stride);
  }
  static HeadsScratch at(float* memory, std::int64_t num_queries, std::int64_t stride) {
    const std::int64_t padded = round_up_to_lanes(num_queries);
    float* factors = memory + padded * kAttentionTileKeys;
    return {memory, factors, factors + padded, floats_per_head(num_queries, stride)};
  }
  /// Without `tile` and `zeros`. `q` has room for parts. Inline in every instruction set's objects: a function of its
  /// own would be one for all of them.
  [[gnu::always_inline]] AttentionScratch of(std::int64_t head, std::int64_t num_queries, std::int64_t stride) const {
    const std::int64_t padded = round_up_to_lanes(num_queries);
    AttentionScratch scratch{};
    scratch.scores = scores;
    scratch.factors = factors;
    scratch.q = heads + head * head_floats;
    scratch.lane_sums = scratch.q + padded * query_floats(stride);
    scratch.partition = AttentionState::at(scratch.lane_sums + padded * 16, num_queries);
    return scratch;
  }

 private:
  static std::int64_t query_floats(std::int64_t stride) { return stride * kFloatParts / 2; }
  static std::int64_t floats_per_head(std::int64_t num_queries, std::int64_t stride) {
    return round_up_to_lanes(num_queries) * (query_floats(stride) + 16) + AttentionState::floats(num_queries, stride);
  }
};

/// What bfloat16 tiles read of one head of an item after the other, before HeadsScratch.
struct TileOperands {
  std::uint16_t* weights;  // [kFloatParts][queries, up][kAttentionTileKeys]
  std::uint16_t* values;   // pairs of positions, [kAttentionTileKeys / 2][head_dim][2]
  std::uint16_t* keys;  // groups, [kAttentionTileKeys / kKeyGroup][head_dim / 2][kKeyGroup][2], unless the cache's do

  static std::int64_t floats(std::int64_t num_queries, std::int64_t head_dim) {
    return (round_up_to_lanes(num_queries) * kFloatParts / 2 + head_dim) * kAttentionTileKeys;
  }
  static TileOperands at(float* memory, std::int64_t num_queries, std::int64_t head_dim) {
    auto* weights = reinterpret_cast<std::uint16_t*>(memory);
    std::uint16_t* values = weights + kFloatParts * round_up_to_lanes(num_queries) * kAttentionTileKeys;
    return {weights, values, values + kAttentionTileKeys * head_dim};
  }
};

}  // namespace nybble
