#pragma once
// Scale bytes of a packed panel, in one of two forms, by superblocks of 128 columns:
//   as they are   [blocks][16 lanes]
//   shared        [16 lanes] the lowest of a lane's bytes, then [16 lanes] how far its blocks' are above it: two bits
//                 each, those of the first block lowest. Blocks past the last column have 0.
// Shared are MXFP4 panels of which every lane's exponents may be shared in every superblock (isa/integer_rows.h): half
// the bytes, and nothing left for the integer products to find out.

#include <cstdint>

#include "kernel_table.h"

namespace nybble {

constexpr int kMaxShift = 3;
constexpr int kMaxExponent = 50;
constexpr int kLowestScaleByte = 127 - kMaxExponent;
constexpr int kHighestScaleByte = 127 + kMaxExponent;

constexpr int kSharedScaleBytes = 2 * kPanelRows;
constexpr int kSharedBlocks = kSuperblockColumns / 32;

// Static, so that every instruction set has its own.
static constexpr inline std::int64_t count_superblocks(std::int64_t num_columns) {
  return (num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
}

static constexpr inline int superblock_scale_bytes(int group_size, bool shared_exponents) {
  return shared_exponents ? kSharedScaleBytes : kSuperblockColumns / group_size * kPanelRows;
}

/// Bytes that the scales of a panel take.
static constexpr inline std::int64_t panel_scale_bytes(std::int64_t num_columns, int group_size,
                                                       bool shared_exponents) {
  if (!shared_exponents) return num_columns / group_size * kPanelRows;
  return count_superblocks(num_columns) * kSharedScaleBytes;
}

/// A lane's scale byte in a block. `scales`: the panel's.
inline std::uint8_t scale_byte(const std::uint8_t* scales, bool shared_exponents, std::int64_t block,
                               std::int64_t lane) {
  if (!shared_exponents) return scales[block * kPanelRows + lane];
  const std::uint8_t* lowest = scales + block / kSharedBlocks * kSharedScaleBytes + lane;
  const int shifts = lowest[kPanelRows];
  return static_cast<std::uint8_t>(*lowest + ((shifts >> (block % kSharedBlocks * 2)) & kMaxShift));
}

/// Scale bytes as a checkpoint has them: `num_lanes` rows of `num_blocks`, one after the other.
struct ScaleRows {
  const std::uint8_t* bytes;
  std::int64_t num_lanes;
  std::int64_t num_blocks;
};

/// Every superblock of every row has exponents that may be shared.
bool may_share_exponents(const ScaleRows& rows);

/// Rows of an MXFP4 matrix, [num_rows][num_blocks] scale bytes, that lie in panels of the shared form.
std::int64_t num_rows_sharing_exponents(const std::uint8_t* bytes, std::int64_t num_rows, std::int64_t num_blocks);

constexpr std::uint8_t kExponentOfOne = 127;

/// Writes a panel's scales as they are; those of lanes past `num_lanes` are `padding`.
void write_scales(const ScaleRows& rows, std::uint8_t padding, std::uint8_t* scales);

/// Writes a panel's scales in the shared form; lanes past `num_lanes` have kExponentOfOne.
void write_shared_scales(const ScaleRows& rows, std::uint8_t* scales);

}  // namespace nybble
