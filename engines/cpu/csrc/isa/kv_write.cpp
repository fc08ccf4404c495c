// Keys and values of new positions into the paged cache.

#include "kernels.h"
#include "kv_rows.h"

namespace nybble::NYBBLE_ISA {

namespace {

void write_bfloat16(const float* values, int64_t count, std::uint16_t* target) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_bfloat16(target + i, load(values + i));
  for (; i < count; ++i) target[i] = float_to_bfloat16(values[i]);
}

void write_row(const float* values, const KvCache& cache, void* base, int64_t slot, int64_t kv_head) {
  const int64_t in_block = slot % cache.block_size;
  auto* rows = static_cast<std::uint8_t*>(base) + head_block_offset(cache, slot / cache.block_size, kv_head);
  void* row = rows + in_block * cache.head_dim * element_bytes(cache.element_type);
  if (cache.element_type == ElementType::kFloat32) {
    std::memcpy(row, values, static_cast<std::size_t>(cache.head_dim) * sizeof(float));
  } else {
    write_bfloat16(values, cache.head_dim, static_cast<std::uint16_t*>(row));
  }
}

}  // namespace

// Rows in ascending order inside a head: where two name one slot, the later one stays.
void kv_write(const KvWriteArgs& args, int64_t num_rows, int64_t head_begin, int64_t head_end) {
  const KvCache& cache = args.cache;
  for (int64_t head = head_begin; head < head_end; ++head) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t source = (row * cache.num_kv_heads + head) * cache.head_dim;
      write_row(args.k + source, cache, cache.k, args.slots[row], head);
      write_row(args.v + source, cache, cache.v, args.slots[row], head);
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
