// Paged KV cache and causal attention over it.
//
// The softmax runs online over KV blocks in ascending order; inside a block everything is keyed by the offset in the
// block. A query's result therefore depends on its position, the block size and the cached values only: decode, any
// chunking of a prefill and a reused prefix give the same bits. Masked positions are left out, not multiplied by zero,
// so what an unwritten slot holds does not matter.

#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int64_t kMaxBlockSize = 256;  // attention_check() in ops.cpp enforces it

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

inline float dot(const float* q, const float* k, int64_t count) {
  F16 acc = splat(0.0F);
  for (int64_t d = 0; d < count; d += 16) acc = fma(load(q + d), load(k + d), acc);
  return sum_lanes(acc);
}

/// Running softmax of one (row, head).
struct State {
  float largest;
  float total;
  float* values;  // [padded head_dim], not yet divided by total
};

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

/// Adds positions [begin, end) of a block to the running softmax.
void add_block(const float* q, const float* k, const float* v, int64_t stride, int64_t begin, int64_t end, float scale,
               State& state) {
  alignas(64) float weights[kMaxBlockSize];
  float largest = state.largest;
  for (int64_t j = begin; j < end; ++j) {
    weights[j] = dot(q, k + j * stride, stride) * scale;
    largest = weights[j] > largest || weights[j] != weights[j] ? weights[j] : largest;
  }
  // Vectors are aligned to the block, so a position always sits in the same lane; lanes outside stay out of the sum.
  float total = 0.0F;
  for (int64_t j = begin / 16 * 16; j < end; j += 16) {
    alignas(64) float lane[16];
    for (int64_t i = 0; i < 16; ++i) lane[i] = j + i >= begin && j + i < end ? weights[j + i] - largest : 0.0F;
    store(lane, exp(load(lane)));
    for (int64_t i = max64(begin - j, 0); i < min64(end - j, 16); ++i) {
      weights[j + i] = lane[i];
      total += lane[i];
    }
  }
  if (largest != state.largest) {
    const F16 factor = state.total == 0.0F ? splat(0.0F) : exp(splat(state.largest - largest));
    alignas(64) float lane[16];
    store(lane, factor);
    state.total *= lane[0];
    for (int64_t d = 0; d < stride; d += 16) store(state.values + d, load(state.values + d) * factor);
    state.largest = largest;
  }
  state.total += total;
  int64_t d = 0;
  for (; d + 64 <= stride; d += 64) add_values<4>(weights, v + d, stride, begin, end, state.values + d);
  for (; d < stride; d += 16) add_values<1>(weights, v + d, stride, begin, end, state.values + d);
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
  const int64_t group = args.num_heads / cache.num_kv_heads;
  float* k_scratch = workspace;
  float* v_scratch = k_scratch + cache.block_size * stride;
  float* q = v_scratch + cache.block_size * stride;
  float* values = q + unit.num_rows * group * stride;
  State states[kAttentionUnitRows * 64];  // at most 64 query heads a KV head, checked by the caller
  for (int64_t i = 0; i < unit.num_rows * group; ++i) {
    const int64_t row = unit.first_row + i / group;
    const float* source = args.q + (row * args.num_heads + kv_head * group + i % group) * cache.head_dim;
    for (int64_t d = 0; d < stride; ++d) {
      q[i * stride + d] = d < cache.head_dim ? source[d] : 0.0F;
      values[i * stride + d] = 0.0F;
    }
    states[i] = {-__builtin_inff(), 0.0F, values + i * stride};
  }

  const int64_t last = unit.first_position + unit.num_rows - 1;
  const int64_t first = args.sliding_window > 0 ? max64(0, unit.first_position - args.sliding_window + 1) : 0;
  for (int64_t block = first / cache.block_size; block <= last / cache.block_size; ++block) {
    const int64_t start = block * cache.block_size;
    const int64_t used = min64(cache.block_size, last - start + 1);
    const int64_t offset = (unit.block_table[block] * cache.num_kv_heads + kv_head) * cache.block_size * cache.head_dim;
    const float* k = block_rows(cache, cache.k, offset, used, k_scratch);
    const float* v = block_rows(cache, cache.v, offset, used, v_scratch);
    for (int64_t i = 0; i < unit.num_rows * group; ++i) {
      const int64_t position = unit.first_position + i / group;
      const int64_t oldest = args.sliding_window > 0 ? max64(0, position - args.sliding_window + 1) : 0;
      const int64_t begin = max64(0, oldest - start);
      const int64_t end = min64(cache.block_size, position - start + 1);
      if (begin < end) add_block(q + i * stride, k, v, stride, begin, end, args.scale, states[i]);
    }
  }

  for (int64_t i = 0; i < unit.num_rows * group; ++i) {
    const int64_t row = unit.first_row + i / group;
    float* target = args.out + (row * args.num_heads + kv_head * group + i % group) * cache.head_dim;
    for (int64_t d = 0; d < cache.head_dim; ++d) target[d] = states[i].values[d] / states[i].total;
  }
}

}  // namespace nybble::NYBBLE_ISA
