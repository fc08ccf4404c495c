#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "packed_scales.h"
#include "thread_pool.h"

namespace nybble {

namespace {

constexpr float kE2m1[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                             -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

float round_to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffU) > 0x7f800000U) return value;
  bits = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Nibbles 0 to 3 of `half`, one to a byte.
inline std::uint32_t spread_nibbles(std::uint32_t half) {
  half = (half | half << 8) & 0x00ff00ffU;
  return (half | half << 4) & 0x0f0f0f0fU;
}

// 8 columns of one row: checkpoint bytes (c0 c1)(c2 c3)(c4 c5)(c6 c7) -> (c0 c4)(c1 c5)(c2 c6)(c3 c7), as one
// little-endian word each way (safetensors is little-endian, and so are the processors this is built for).
inline void interleave_eight(const std::uint8_t* source, std::uint8_t* target) {
  std::uint32_t word;
  std::memcpy(&word, source, sizeof(word));
  word = spread_nibbles(word & 0xffffU) | spread_nibbles(word >> 16) << 4;
  std::memcpy(target, &word, sizeof(word));
}

/// To [K / pair][group_panels][16][pair] elements, of which `target` is the first of one panel.
template <typename Element>
void transpose_dense_panel(const Element* source, std::int64_t num_lanes, std::int64_t num_columns, std::int64_t pair,
                           std::int64_t group_panels, Element* target) {
  constexpr std::int64_t kTile = 64;  // columns: one pass reads whole cache lines of each row
  const std::int64_t stride = group_panels * kPanelRows * pair;
  for (std::int64_t begin = 0; begin < num_columns; begin += kTile) {
    const std::int64_t end = std::min(begin + kTile, num_columns);
    for (std::int64_t lane = 0; lane < num_lanes; ++lane) {
      const Element* row = source + lane * num_columns;
      for (std::int64_t k = begin; k < end; ++k) target[k / pair * stride + lane * pair + k % pair] = row[k];
    }
  }
}

constexpr int kE4m3One = 0x38;  // the byte of 1.0

}  // namespace

Fp4Weight::Fp4Weight(const std::vector<Fp4Shard>& shards, std::int64_t num_columns, int group_size,
                     bool round_to_bfloat16, float activation_scale)
    : num_columns_(num_columns),
      group_size_(group_size),
      round_to_bfloat16_(round_to_bfloat16),
      activation_scale_(activation_scale) {
  if (group_size != 16 && group_size != 32) {
    throw std::invalid_argument("group_size must be 16 or 32, got " + std::to_string(group_size));
  }
  if (num_columns <= 0 || num_columns % group_size != 0) {
    throw std::invalid_argument("num_columns must be a positive multiple of group_size " + std::to_string(group_size) +
                                ", got " + std::to_string(num_columns));
  }
  if (shards.empty()) throw std::invalid_argument("an FP4 weight needs at least one shard");
  plan_panels(shards);
  const auto num_scales = static_cast<double>(num_columns / group_size * kPanelRows);
  for_panels(shards, num_scales, [&](const Fp4Shard& shard, std::int64_t first_row, Fp4Panel& panel) {
    panel.shared_exponents =
        group_size == 32 && panel.power_of_two_scales && may_share_exponents(scale_rows(shard, first_row, panel));
  });
  shared_exponents_ =
      std::all_of(panels_.begin(), panels_.end(), [](const Fp4Panel& info) { return info.shared_exponents; });
  scale_offset_ = static_cast<std::size_t>(num_columns / 8 * 64);
  const std::int64_t scale_bytes = panel_scale_bytes(num_columns, group_size, shared_exponents_);
  panel_bytes_ = scale_offset_ + static_cast<std::size_t>(div_up(scale_bytes, 64) * 64);
  buffer_ = AlignedBuffer(panels_.size() * panel_bytes_);
  for_panels(
      shards, static_cast<double>(panel_bytes_),
      [&](const Fp4Shard& shard, std::int64_t first_row, Fp4Panel& panel) { repack_panel(shard, first_row, panel); });
  e4m3_scales_ = std::all_of(panels_.begin(), panels_.end(), [](const Fp4Panel& info) { return info.e4m3_scales; });
}

/// E4M3 scales keep their four significant bits, and the tensor's factor waits for the end of the sums: products with
/// E4M3 activation scales are exact then. Files divide by the factor or multiply; both agree with it but for rounding.
void Fp4Weight::split_scales(ScaleTable& table) {
  float e4m3[256];
  for (int byte = 0; byte < 128; ++byte) {
    e4m3[byte] = byte < 8 ? std::ldexp(static_cast<float>(byte), -9)
                          : std::ldexp(static_cast<float>(8 + byte % 8), byte / 8 - 10);
    if (byte == 127) e4m3[byte] = std::numeric_limits<float>::quiet_NaN();
    e4m3[byte + 128] = -e4m3[byte];
  }
  const double factor = table.multiplier[kE4m3One];
  table.e4m3 = std::isnormal(table.multiplier[kE4m3One]) && factor > 0.0;
  for (int byte = 0; byte < 127; ++byte) {
    const double expected = factor * e4m3[byte];
    table.e4m3 = table.e4m3 && std::fabs(table.multiplier[byte] - expected) <= 0x1p-22 * expected;
  }
  table.global_scale = table.e4m3 ? table.multiplier[kE4m3One] : 1.0F;
  for (int byte = 0; byte < 256; ++byte) {
    table.quarter[byte] = 0.25F * (table.e4m3 ? e4m3[byte] : table.multiplier[byte]);
  }
}

/// Calls `run(shard, first_row, panel)` for every panel, spread over the threads; `first_row` is the shard's.
template <typename Run>
void Fp4Weight::for_panels(const std::vector<Fp4Shard>& shards, double panel_cost, const Run& run) {
  std::int64_t first_panel = 0;
  for (const Fp4Shard& shard : shards) {
    const std::int64_t count = div_up(shard.num_rows, kPanelRows);
    parallel_for(count, panel_cost, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        run(shard, p * kPanelRows, panels_[static_cast<std::size_t>(first_panel + p)]);
      }
    });
    first_panel += count;
  }
}

void Fp4Weight::plan_panels(const std::vector<Fp4Shard>& shards) {
  for (const Fp4Shard& shard : shards) {
    if (shard.num_rows <= 0) throw std::invalid_argument("a shard of an FP4 weight has no rows");
    ScaleTable& table = tables_.emplace_back();
    for (int byte = 0; byte < 256; ++byte) {
      table.multiplier[byte] = shard.scale_table[byte];
    }
    split_scales(table);
    table.power_of_two = true;
    for (int byte = 1; byte < 255; ++byte) {
      table.power_of_two = table.power_of_two && table.multiplier[byte] == std::ldexp(1.0F, byte - 127);
    }
    for (std::int64_t row = 0; row < shard.num_rows; row += kPanelRows) {
      const int lanes = static_cast<int>(std::min<std::int64_t>(kPanelRows, shard.num_rows - row));
      panels_.push_back({num_rows_ + row, lanes, table.multiplier, table.quarter, table.global_scale,
                         table.power_of_two, table.e4m3, false});
    }
    num_rows_ += shard.num_rows;
    shard_rows_.push_back(shard.num_rows);
  }
}

ScaleRows Fp4Weight::scale_rows(const Fp4Shard& shard, std::int64_t first_row, const Fp4Panel& panel) const {
  const std::int64_t num_blocks = num_columns_ / group_size_;
  return {shard.scales + first_row * num_blocks, panel.num_lanes, num_blocks};
}

/// Where a panel of panels_ lies in the buffer.
std::size_t Fp4Weight::panel_offset(const Fp4Panel& panel) const {
  return static_cast<std::size_t>(&panel - panels_.data()) * panel_bytes_;
}

void Fp4Weight::repack_panel(const Fp4Shard& shard, std::int64_t first_row, Fp4Panel& panel) {
  std::uint8_t* codes = buffer_.data() + panel_offset(panel);
  const std::int64_t row_bytes = num_columns_ / 2;
  constexpr std::int64_t kTileSteps = 16;  // 64 bytes of each row at a time
  const std::int64_t num_steps = num_columns_ / 8;
  for (std::int64_t begin = 0; begin < num_steps; begin += kTileSteps) {
    const std::int64_t end = std::min(begin + kTileSteps, num_steps);
    for (std::int64_t lane = 0; lane < panel.num_lanes; ++lane) {
      const std::uint8_t* row = shard.packed + (first_row + lane) * row_bytes;
      for (std::int64_t step = begin; step < end; ++step) {
        interleave_eight(row + step * 4, codes + step * 64 + lane * 4);
      }
    }
  }
  const ScaleRows rows = scale_rows(shard, first_row, panel);
  if (panel.shared_exponents) {
    write_shared_scales(rows, codes + scale_offset_);
  } else {
    write_scales(rows, group_size_ == 32 ? kExponentOfOne : std::uint8_t{0}, codes + scale_offset_);
  }
  constexpr std::uint8_t kE4m3Nan = 127;  // and above it the negative ones
  panel.e4m3_scales = panel.e4m3_scales && std::all_of(rows.bytes, rows.bytes + rows.num_lanes * rows.num_blocks,
                                                       [](std::uint8_t byte) { return byte < kE4m3Nan; });
}

Fp4View Fp4Weight::view() const {
  return {
      buffer_.data(), panel_bytes_,     scale_offset_, panels_.data(),     static_cast<std::int64_t>(panels_.size()),
      num_rows_,      num_columns_,     group_size_,   round_to_bfloat16_, activation_scale_,
      e4m3_scales_,   shared_exponents_};
}

UpcomingRead Fp4Weight::panels() const {
  return {buffer_.data(), static_cast<std::int64_t>(panel_bytes_), static_cast<std::int64_t>(panels_.size())};
}

void Fp4Weight::decode(float* out) const {
  const auto decode_panel = [&](std::int64_t index) {
    const Fp4Panel& panel = panels_[static_cast<std::size_t>(index)];
    const std::uint8_t* codes = buffer_.data() + panel_offset(panel);
    for (std::int64_t lane = 0; lane < panel.num_lanes; ++lane) {
      float* row = out + (panel.first_output + lane) * num_columns_;
      for (std::int64_t k = 0; k < num_columns_; ++k) {
        const std::uint8_t byte = codes[k / 8 * 64 + lane * 4 + k % 4];
        const int code = k % 8 < 4 ? byte & 15 : byte >> 4;
        const std::uint8_t scale = scale_byte(codes + scale_offset_, panel.shared_exponents, k / group_size_, lane);
        const float value = kE2m1[code] * panel.scale_table[scale];
        row[k] = round_to_bfloat16_ ? ::nybble::round_to_bfloat16(value) : value;
      }
    }
  };
  parallel_for(static_cast<std::int64_t>(panels_.size()), 16.0 * static_cast<double>(num_columns_),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t p = begin; p < end; ++p) decode_panel(p);
               });
}

DenseWeight::DenseWeight(const void* values, std::int64_t num_rows, std::int64_t num_columns, ElementType element_type)
    : num_rows_(num_rows), num_columns_(num_columns), element_type_(element_type) {
  if (num_rows <= 0 || num_columns <= 0) throw std::invalid_argument("a dense weight needs rows and columns");
  const std::int64_t num_panels = div_up(num_rows, kPanelRows);
  buffer_ = AlignedBuffer(static_cast<std::size_t>(num_panels * dense_panel_bytes(view())));
  parallel_for(num_panels, static_cast<double>(num_columns * kPanelRows), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t lanes = std::min<std::int64_t>(kPanelRows, num_rows - p * kPanelRows);
      const Place place = place_of(p);
      const std::int64_t source = p * kPanelRows * num_columns, pair = columns_together();
      const auto transpose = [&](auto element) {
        using Element = decltype(element);
        auto* group = reinterpret_cast<Element*>(buffer_.data() + place.group_offset);
        transpose_dense_panel(static_cast<const Element*>(values) + source, lanes, num_columns, pair, place.num_panels,
                              group + place.index * pair * kPanelRows);
      };
      if (element_type == ElementType::kFloat32) {
        transpose(std::uint32_t{});
      } else {
        transpose(std::uint16_t{});
      }
    }
  });
}

DenseWeight::Place DenseWeight::place_of(std::int64_t panel) const {
  const std::int64_t index = panel % kDenseGroupPanels, first = panel - index;
  const std::int64_t num_panels = div_up(num_rows_, kPanelRows) - first;
  return {index, std::min<std::int64_t>(kDenseGroupPanels, num_panels), first * dense_panel_bytes(view())};
}

void DenseWeight::decode_panel(std::int64_t panel, float* out) const {
  const Place place = place_of(panel);
  const std::int64_t pair = columns_together();
  const std::int64_t element_bytes = element_type_ == ElementType::kFloat32 ? 4 : 2;
  const std::uint8_t* group = buffer_.data() + place.group_offset;
  float values[kPanelRows * 2];
  for (std::int64_t k = 0; k < num_columns_; k += pair) {  // [columns / pair][panels][16][pair]
    const std::uint8_t* at = group + (k / pair * place.num_panels + place.index) * kPanelRows * pair * element_bytes;
    kernels().to_float32(at, element_type_, kPanelRows * pair, values);
    for (std::int64_t lane = 0; lane < kPanelRows; ++lane) {
      for (std::int64_t i = 0; i < std::min(pair, num_columns_ - k); ++i) {
        out[lane * num_columns_ + k + i] = values[lane * pair + i];
      }
    }
  }
}

DenseView DenseWeight::view() const { return {buffer_.data(), num_rows_, num_columns_, element_type_}; }

UpcomingRead DenseWeight::groups() const {
  return {buffer_.data(), kDenseGroupPanels * dense_panel_bytes(view()),
          div_up(num_rows_, kDenseGroupPanels * kPanelRows)};
}

}  // namespace nybble
