// Paged attention against double precision, in every cache; the same bits however a sequence is cut into steps.

#include "kernel_tests.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

namespace {

struct Sequence {
  Index length, heads, kv_heads, head_dim, block_size;
  Floats k, v, q;
  Floats k_cache, v_cache;
  std::vector<std::int32_t> table;

  Sequence(Index n, Index h, Index kv, Index d, Index block)
      : length(n), heads(h), kv_heads(kv), head_dim(d), block_size(block) {
    const Index blocks = (n + block - 1) / block;
    k = normals(n * kv * d);
    v = normals(n * kv * d);
    q = normals(n * h * d);
    k_cache.assign(static_cast<std::size_t>(blocks * kv * block * d), NAN);
    v_cache = k_cache;
    std::vector<std::int64_t> slots;
    for (Index i = 0; i < blocks; ++i) table.push_back(static_cast<std::int32_t>(blocks - 1 - i));
    for (Index i = 0; i < n; ++i) slots.push_back(table[static_cast<std::size_t>(i / block)] * block + i % block);
    kv_write({cache(), k.data(), v.data(), slots.data()}, n);
  }
  KvCache cache() {
    return {k_cache.data(), v_cache.data(),       static_cast<Index>(table.size()), kv_heads, block_size,
            head_dim,       ElementType::kFloat32};
  }
  void attend(Index first, Index count, Index window, float* out) {
    const std::int32_t starts[] = {0, static_cast<std::int32_t>(count)};
    const std::int32_t context = static_cast<std::int32_t>(first + count);
    const Index row = heads * head_dim;
    paged_attention({cache(), q.data() + first * row, out + first * row, heads, 0.2F, window},
                    {count, 1, static_cast<Index>(table.size()), table.data(), starts, &context});
  }
  std::vector<double> reference(Index window) const {
    std::vector<double> out;
    for (Index i = 0; i < length; ++i) {
      for (Index h = 0; h < heads; ++h) {
        const Index kv = h / (heads / kv_heads);
        std::vector<double> sums(static_cast<std::size_t>(head_dim), 0.0);
        double total = 0.0;
        for (Index j = window > 0 ? std::max<Index>(0, i - window + 1) : 0; j <= i; ++j) {
          const float* key = k.data() + (j * kv_heads + kv) * head_dim;
          const float* value = v.data() + (j * kv_heads + kv) * head_dim;
          const float* query = q.data() + (i * heads + h) * head_dim;
          double score = 0.0;
          for (Index d = 0; d < head_dim; ++d) score += static_cast<double>(query[d]) * key[d];
          const double weight = std::exp(0.2 * score);
          total += weight;
          for (Index d = 0; d < head_dim; ++d) sums[static_cast<std::size_t>(d)] += weight * value[d];
        }
        for (const double sum : sums) out.push_back(sum / total);
      }
    }
    return out;
  }
};

void test_attention(Index head_dim, Index block_size, Index window) {
  Sequence sequence(45, 6, 2, head_dim, block_size);
  Floats whole(sequence.q.size()), single(whole.size());
  sequence.attend(0, 45, window, whole.data());
  for (Index i = 0; i < 45; ++i) sequence.attend(i, 1, window, single.data());
  const std::string name = "paged_attention, head_dim " + std::to_string(head_dim);
  check(close(whole, sequence.reference(window), 1e-5), name);
  check(same_bits(whole, single), name + ", decode against prefill");
}

// Keys and values that the type holds exactly, in caches of exactly the bytes they need. E4M3: scales after the rows.
void test_narrow_cache(ElementType type, Index head_dim, Index block_size, Index heads, Index window) {
  Sequence sequence(77, heads, 2, head_dim, block_size);
  for (Floats* rows : {&sequence.k, &sequence.v}) {
    for (float& value : *rows) value = std::round(2.0F * value) / 2.0F;
  }
  const Index num_blocks = static_cast<Index>(sequence.table.size());
  const Index row_bytes = type == ElementType::kFloat8E4m3 ? head_dim + 1 : 2 * head_dim;
  std::vector<std::uint8_t> keys(static_cast<std::size_t>(num_blocks * 2 * block_size * row_bytes), 0xff);
  std::vector<std::uint8_t> values = keys;
  const KvCache cache{keys.data(), values.data(), num_blocks, 2, block_size, head_dim, type};
  std::vector<std::int64_t> slots;
  for (Index i = 0; i < 77; ++i) {
    slots.push_back(sequence.table[static_cast<std::size_t>(i / block_size)] * block_size + i % block_size);
  }
  kv_write({cache, sequence.k.data(), sequence.v.data(), slots.data()}, 77);
  Floats out(sequence.q.size()), single(out.size());
  const auto attend = [&](Index first, Index count, float* target) {
    const std::int32_t starts[] = {0, static_cast<std::int32_t>(count)};
    const std::int32_t context = static_cast<std::int32_t>(first + count);
    const Index row = heads * head_dim;
    paged_attention({cache, sequence.q.data() + first * row, target + first * row, heads, 0.2F, window},
                    {count, 1, num_blocks, sequence.table.data(), starts, &context});
  };
  attend(0, 77, out.data());
  for (Index i = 0; i < 77; i += i % 3 + 1) attend(i, std::min<Index>(i % 3 + 1, 77 - i), single.data());
  const std::string name = "paged_attention, bytes a row: " + std::to_string(row_bytes);
  check(close(out, sequence.reference(window), 1e-5), name);
  check(same_bits(out, single), name + ", few rows against prefill");
}

// More than one partition, alone on the threads and many at once.
void test_partitions(Index window) {
  Sequence sequence(1030, 2, 1, 16, 16);
  Floats whole(sequence.q.size()), part(whole.size());
  sequence.attend(0, 1030, window, whole.data());
  check(close(whole, sequence.reference(window), 1e-5), "paged_attention, partitions");
  for (const Index first : {0, 511, 512, 1020, 1029}) {
    std::fill(part.begin(), part.end(), 0.0F);
    const Index count = std::min<Index>(3, 1030 - first);
    sequence.attend(first, count, window, part.data());
    const std::size_t begin = static_cast<std::size_t>(first) * 32;
    const std::size_t size = static_cast<std::size_t>(count) * 32;
    check(std::memcmp(part.data() + begin, whole.data() + begin, size * sizeof(float)) == 0,
          "paged_attention, partitions, rows from " + std::to_string(first));
  }
}

void test_bounds() {
  Sequence sequence(20, 2, 1, 32, 16);
  Floats out(sequence.q.size());
  sequence.table[1] = 2;
  check_refused("block id", [&] { sequence.attend(0, 20, 0, out.data()); });
  const std::int64_t slot = 32;
  check_refused("slot", [&] { kv_write({sequence.cache(), out.data(), out.data(), &slot}, 1); });
}

}  // namespace

void test_paged_attention() {
  for (const Index head_dim : {32, 40, 80, 128}) {
    for (const Index block_size : {1, 16, 24}) {
      for (const Index window : {0, 7}) test_attention(head_dim, block_size, window);
      for (const Index window : {0, 19}) {
        for (const Index heads : {2, 8}) {
          test_narrow_cache(ElementType::kFloat8E4m3, head_dim, block_size, heads, window);
          test_narrow_cache(ElementType::kBfloat16, head_dim, block_size, heads, window);
        }
      }
    }
  }
  for (const Index window : {0, 530}) test_partitions(window);
  test_bounds();
}

}  // namespace nybble
