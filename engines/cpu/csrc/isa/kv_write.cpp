// Keys and values of new positions into the paged cache.

#include "../attention_layout.h"
#include "float_bits.h"
#include "half_floats.h"
#include "kernels.h"
#include "kv_rows.h"

namespace nybble::NYBBLE_ISA {

namespace {

void write_bfloat16(const float* values, int64_t count, std::uint16_t* target) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_bfloat16(target + i, load(values + i));
  for (; i < count; ++i) target[i] = float_to_bfloat16(values[i]);
}

/// Scale byte of a row whose largest magnitude has these bits: the least power of two that brings it to 448 or less.
int e4m3_scale(std::uint32_t largest) {
  if (largest >= 0x7f800000U) return kNanScale;
  const int exponent = static_cast<int>(largest >> 23) - 127;
  const int wanted = exponent - 8 + ((largest & 0x7fffffU) > 0x600000U ? 1 : 0);
  return 127 + (wanted < -126 ? -126 : wanted > 119 ? 119 : wanted);
}

/// The nearest E4M3 number to `value` times `inverse`, ties to even, at most 448.
std::uint8_t e4m3_code(float value, float inverse) {
  const std::uint32_t sign = float_to_bits(value) >> 31;
  const float product = bits_to_float(float_to_bits(value) & 0x7fffffffU) * inverse;
  const float magnitude = product < 448.0F ? product : 448.0F;
  const std::uint32_t bits = float_to_bits(magnitude);
  const std::uint32_t normal = ((bits + 0x7ffffU + (bits >> 20 & 1U)) >> 20) - (120U << 3);
  const std::uint32_t subnormal = float_to_bits(magnitude + 16384.0F) - float_to_bits(16384.0F);  // units of 2^-9
  return static_cast<std::uint8_t>((magnitude < 0x1p-6F ? subnormal : normal) | sign << 7);
}

/// Scale byte of a row.
int e4m3_scale(const float* values, int64_t count) {
  std::uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = float_to_bits(values[i]) & 0x7fffffffU;
    largest = magnitude > largest ? magnitude : largest;
  }
  return e4m3_scale(largest);
}

/// The numbers of a row with that scale; those of a NaN row are zeros.
void write_e4m3(const float* values, int64_t count, int scale, std::uint8_t* target) {
  if (scale == kNanScale) {
    std::memset(target, 0, static_cast<std::size_t>(count));
    return;
  }
  const float inverse = bits_to_float(static_cast<std::uint32_t>(254 - scale) << 23);
  for (int64_t i = 0; i < count; ++i) target[i] = e4m3_code(values[i], inverse);
}

/// One slot of a group, its elements written 16 at a time by `write`: pairs of dimensions are kKeyGroup pairs apart.
template <typename Element, typename Write>
void write_pairs(const float* values, int64_t count, Element* target, const Write& write) {
  for (int64_t i = 0; i < count; i += 16) {
    Element part[16];
    write(values + i, 16, part);
    for (int64_t j = 0; j < 16; j += 2) std::memcpy(target + (i + j) * kKeyGroup, part + j, 2 * sizeof(Element));
  }
}

/// Where the keys or values of a head lie that `slot` belongs to.
struct Slot {
  int64_t in_block;
  std::uint8_t* rows;
  std::uint8_t* scale;

  Slot(const KvCache& cache, void* base, int64_t slot, int64_t kv_head) : in_block(slot % cache.block_size) {
    const int64_t block = slot / cache.block_size;
    rows = static_cast<std::uint8_t*>(base) + head_block_offset(cache, block, kv_head);
    scale = static_cast<std::uint8_t*>(base) + head_scales_offset(cache, block, kv_head) + in_block;
  }
};

void write_row(const float* values, const KvCache& cache, const Slot& slot) {
  std::uint8_t* row = slot.rows + slot.in_block * cache.head_dim * element_bytes(cache.element_type);
  if (cache.element_type == ElementType::kFloat32) {
    std::memcpy(row, values, static_cast<std::size_t>(cache.head_dim) * sizeof(float));
  } else if (cache.element_type == ElementType::kFloat8E4m3) {
    const int scale = e4m3_scale(values, cache.head_dim);
    *slot.scale = static_cast<std::uint8_t>(scale);
    write_e4m3(values, cache.head_dim, scale, row);
  } else {
    write_bfloat16(values, cache.head_dim, reinterpret_cast<std::uint16_t*>(row));
  }
}

void write_key(const float* values, const KvCache& cache, const Slot& slot) {
  if (!keys_in_groups(cache)) return write_row(values, cache, slot);
  const int64_t element = slot.in_block / kKeyGroup * kKeyGroup * cache.head_dim + 2 * (slot.in_block % kKeyGroup);
  if (cache.element_type == ElementType::kFloat8E4m3) {
    const int scale = e4m3_scale(values, cache.head_dim);
    *slot.scale = static_cast<std::uint8_t>(scale);
    write_pairs(values, cache.head_dim, slot.rows + element,
                [&](const float* part, int64_t count, std::uint8_t* out) { write_e4m3(part, count, scale, out); });
    return;
  }
  write_pairs(values, cache.head_dim, reinterpret_cast<std::uint16_t*>(slot.rows) + element, write_bfloat16);
}

}  // namespace

// Rows in ascending order inside a head: where two name one slot, the later one stays.
void kv_write(const KvWriteArgs& args, int64_t num_rows, int64_t head_begin, int64_t head_end) {
  const KvCache& cache = args.cache;
  for (int64_t head = head_begin; head < head_end; ++head) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t source = (row * cache.num_kv_heads + head) * cache.head_dim;
      write_key(args.k + source, cache, Slot(cache, cache.k, args.slots[row], head));
      write_row(args.v + source, cache, Slot(cache, cache.v, args.slots[row], head));
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
