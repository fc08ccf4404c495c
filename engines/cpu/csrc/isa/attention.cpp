// Paged KV cache and causal attention over it.
//
// The softmax runs online over KV blocks in ascending order; inside a block everything is keyed by the offset in the
// block. A query's result therefore depends on its position, the block size and the cached values only: decode, any
// chunking of a prefill and a reused prefix give the same bits. Masked positions are left out, not multiplied by zero,
// so what an unwritten slot holds does not matter.

#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

inline int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

inline void write_row(const float* values, int64_t count, ElementType type, void* cache, int64_t offset) {
  if (type == ElementType::kFloat32) {
    std::memcpy(static_cast<float*>(cache) + offset, values, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  auto* target = static_cast<std::uint16_t*>(cache) + offset;
  for (int64_t i = 0; i < count; ++i) target[i] = float_to_bfloat16(values[i]);
}

/// A block of one KV head as float32 rows of `padded(head_dim)`: in place where the cache is so already.
const float* block_rows(const KvCache& cache, const void* base, int64_t offset, int64_t count, float* scratch) {
  const int64_t stride = padded(cache.head_dim);
  if (cache.element_type == ElementType::kFloat32) {
    const float* source = static_cast<const float*>(base) + offset;
    if (stride == cache.head_dim) return source;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t d = 0; d < stride; ++d) {
        scratch[j * stride + d] = d < cache.head_dim ? source[j * cache.head_dim + d] : 0.0F;
      }
    }
    return scratch;
  }
  const auto* source = static_cast<const std::uint16_t*>(base) + offset;
  for (int64_t j = 0; j < count; ++j) {
    int64_t d = 0;
    for (; d + 16 <= cache.head_dim; d += 16) {
      store(scratch + j * stride + d, load_bfloat16(source + j * cache.head_dim + d));
    }
    for (; d < stride; ++d) {
      scratch[j * stride + d] = d < cache.head_dim ? bfloat16_to_float(source[j * cache.head_dim + d]) : 0.0F;
    }
  }
  return scratch;
}

/// Keys [count][stride] -> [stride][padded count]: a vector then holds one dimension of 16 keys.
void transpose_keys(const float* keys, int64_t stride, int64_t count, float* out) {
  const int64_t width = padded(count);
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t d = 0; d < stride; ++d) out[d * width + j] = j < count ? keys[j * stride + d] : 0.0F;
  }
}

/// Running softmax of one (row, head). `total` has a lane per offset in the block modulo 16.
struct State {
  float largest;
  F16 total;
  float* values;  // [padded head_dim], not yet divided by the total
};

/// Scores of 16 keys for `Queries` query vectors: one sum per key, dimensions in ascending order.
template <int Queries>
void score_keys(const float* q, int64_t stride, const float* keys, int64_t width, float scale, float* scores,
                int64_t scores_stride) {
  F16 acc[Queries];
  for (int i = 0; i < Queries; ++i) acc[i] = splat(0.0F);
  for (int64_t d = 0; d < stride; ++d) {
    const F16 key = load(keys + d * width);
    for (int i = 0; i < Queries; ++i) acc[i] = fma(key, splat(q[i * stride + d]), acc[i]);
  }
  for (int i = 0; i < Queries; ++i) store(scores + i * scores_stride, acc[i] * splat(scale));
}

void score_block(const float* q, int64_t num_queries, int64_t stride, const float* keys, int64_t width, float scale,
                 float* scores) {
  for (int64_t j = 0; j < width; j += 16) {
    int64_t i = 0;
    for (; i + 4 <= num_queries; i += 4) {
      score_keys<4>(q + i * stride, stride, keys + j, width, scale, scores + i * width + j, width);
    }
    for (; i < num_queries; ++i) {
      score_keys<1>(q + i * stride, stride, keys + j, width, scale, scores + i * width + j, width);
    }
  }
}

template <int Vectors>
void add_values(const float* weights, const float* v, int64_t stride, int64_t begin, int64_t end, float* values) {
  F16 acc[Vectors];
  for (int i = 0; i < Vectors; ++i) acc[i] = load(values + i * 16);
  for (int64_t j = begin; j < end; ++j) {
    const F16 weight = splat(weights[j]);
    for (int i = 0; i < Vectors; ++i) acc[i] = fma(weight, load(v + j * stride + i * 16), acc[i]);
  }
  for (int i = 0; i < Vectors; ++i) store(values + i * 16, acc[i]);
}

/// Adds positions [begin, end) of a block to the running softmax. `scores` [padded block] become weights.
void add_block(float* scores, const float* v, int64_t stride, int64_t begin, int64_t end, State& state) {
  const int64_t first = begin / 16 * 16;
  for (int64_t j = first; j < begin; ++j) scores[j] = -__builtin_inff();
  for (int64_t j = end; j < padded(end); ++j) scores[j] = -__builtin_inff();
  F16 highest = load(scores + first);
  for (int64_t j = first + 16; j < end; j += 16) highest = max(highest, load(scores + j));
  const float block_largest = max_lanes(highest);
  if (block_largest > state.largest) {
    const F16 factor = state.largest > -__builtin_inff() ? exp(splat(state.largest - block_largest)) : splat(0.0F);
    state.total = state.total * factor;
    for (int64_t d = 0; d < stride; d += 16) store(state.values + d, load(state.values + d) * factor);
    state.largest = block_largest;
  }
  // Masked lanes count as 0, the others sit in the lane of their position: the sum is the same in every step.
  const F16 largest = splat(state.largest);
  for (int64_t j = first; j < end; j += 16) {
    store(scores + j, exp(load(scores + j) - largest));
    for (int64_t i = j; i < begin; ++i) scores[i] = 0.0F;
    for (int64_t i = end; i < j + 16; ++i) scores[i] = 0.0F;
    state.total = state.total + load(scores + j);
  }
  int64_t d = 0;
  for (; d + 64 <= stride; d += 64) add_values<4>(scores, v + d, stride, begin, end, state.values + d);
  for (; d < stride; d += 16) add_values<1>(scores, v + d, stride, begin, end, state.values + d);
}

}  // namespace

void kv_write(const KvWriteArgs& args, int64_t row_begin, int64_t row_end) {
  const KvCache& cache = args.cache;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t block = args.slots[row] / cache.block_size;
    const int64_t offset_in_block = args.slots[row] % cache.block_size;
    for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
      const int64_t source = (row * cache.num_kv_heads + head) * cache.head_dim;
      const int64_t target =
          ((block * cache.num_kv_heads + head) * cache.block_size + offset_in_block) * cache.head_dim;
      write_row(args.k + source, cache.head_dim, cache.element_type, cache.k, target);
      write_row(args.v + source, cache.head_dim, cache.element_type, cache.v, target);
    }
  }
}

void attention(const AttentionArgs& args, const AttentionUnit& unit, int64_t kv_head, float* workspace) {
  const KvCache& cache = args.cache;
  const int64_t stride = padded(cache.head_dim);
  const int64_t width = padded(cache.block_size);
  const int64_t group = args.num_heads / cache.num_kv_heads;
  const int64_t num_queries = unit.num_rows * group;
  float* k_scratch = workspace;
  float* v_scratch = k_scratch + width * stride;
  float* keys = v_scratch + width * stride;
  float* q = keys + width * stride;
  float* values = q + num_queries * stride;
  float* scores = values + num_queries * stride;
  State states[kAttentionUnitRows * 64];  // at most 64 query heads a KV head, checked by the caller
  for (int64_t i = 0; i < num_queries; ++i) {
    const int64_t row = unit.first_row + i / group;
    const float* source = args.q + (row * args.num_heads + kv_head * group + i % group) * cache.head_dim;
    for (int64_t d = 0; d < stride; ++d) {
      q[i * stride + d] = d < cache.head_dim ? source[d] : 0.0F;
      values[i * stride + d] = 0.0F;
    }
    states[i] = {-__builtin_inff(), splat(0.0F), values + i * stride};
  }

  const int64_t last = unit.first_position + unit.num_rows - 1;
  const int64_t first = args.sliding_window > 0 ? max64(0, unit.first_position - args.sliding_window + 1) : 0;
  for (int64_t block = first / cache.block_size; block <= last / cache.block_size; ++block) {
    const int64_t start = block * cache.block_size;
    const int64_t used = min64(cache.block_size, last - start + 1);
    const int64_t offset = (unit.block_table[block] * cache.num_kv_heads + kv_head) * cache.block_size * cache.head_dim;
    const float* k = block_rows(cache, cache.k, offset, used, k_scratch);
    const float* v = block_rows(cache, cache.v, offset, used, v_scratch);
    transpose_keys(k, stride, used, keys);
    score_block(q, num_queries, stride, keys, padded(used), args.scale, scores);
    for (int64_t i = 0; i < num_queries; ++i) {
      const int64_t position = unit.first_position + i / group;
      const int64_t oldest = args.sliding_window > 0 ? max64(0, position - args.sliding_window + 1) : 0;
      const int64_t begin = max64(0, oldest - start);
      const int64_t end = min64(cache.block_size, position - start + 1);
      if (begin < end) add_block(scores + i * padded(used), v, stride, begin, end, states[i]);
    }
  }

  for (int64_t i = 0; i < num_queries; ++i) {
    const int64_t row = unit.first_row + i / group;
    float* target = args.out + (row * args.num_heads + kv_head * group + i % group) * cache.head_dim;
    const F16 total = splat(sum_lanes(states[i].total));
    for (int64_t d = 0; d < cache.head_dim; d += 16) {
      store_partial(target + d, load(states[i].values + d) / total, cache.head_dim - d);
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
