#include "packed_scales.h"

#include <algorithm>

namespace nybble {

namespace {

/// The lowest and the highest scale byte of a row's superblock.
struct ByteRange {
  int lowest, highest;
};

inline ByteRange byte_range(const std::uint8_t* bytes, std::int64_t count) {
  ByteRange range{bytes[0], bytes[0]};
  for (std::int64_t b = 1; b < count; ++b) {
    range.lowest = std::min<int>(range.lowest, bytes[b]);
    range.highest = std::max<int>(range.highest, bytes[b]);
  }
  return range;
}

inline bool may_share(const std::uint8_t* bytes, std::int64_t count) {
  const ByteRange range = byte_range(bytes, count);
  return range.highest - range.lowest <= kMaxShift && range.lowest >= kLowestScaleByte &&
         range.highest <= kHighestScaleByte;
}

}  // namespace

bool may_share_exponents(const ScaleRows& rows) {
  for (std::int64_t lane = 0; lane < rows.num_lanes; ++lane) {
    const std::uint8_t* row = rows.bytes + lane * rows.num_blocks;
    std::int64_t block = 0;
    for (; block + kSharedBlocks <= rows.num_blocks; block += kSharedBlocks) {
      if (!may_share(row + block, kSharedBlocks)) return false;
    }
    if (block < rows.num_blocks && !may_share(row + block, rows.num_blocks - block)) return false;
  }
  return true;
}

std::int64_t num_rows_sharing_exponents(const std::uint8_t* bytes, std::int64_t num_rows, std::int64_t num_blocks) {
  std::int64_t sharing = 0;
  for (std::int64_t row = 0; row < num_rows; row += kPanelRows) {
    const std::int64_t lanes = std::min<std::int64_t>(kPanelRows, num_rows - row);
    if (may_share_exponents({bytes + row * num_blocks, lanes, num_blocks})) sharing += lanes;
  }
  return sharing;
}

void write_scales(const ScaleRows& rows, std::uint8_t padding, std::uint8_t* scales) {
  constexpr std::int64_t kTile = 64;  // blocks: one pass reads whole cache lines of each row
  for (std::int64_t begin = 0; begin < rows.num_blocks; begin += kTile) {
    const std::int64_t end = std::min(begin + kTile, rows.num_blocks);
    for (std::int64_t lane = 0; lane < rows.num_lanes; ++lane) {
      const std::uint8_t* row = rows.bytes + lane * rows.num_blocks;
      for (std::int64_t b = begin; b < end; ++b) scales[b * kPanelRows + lane] = row[b];
    }
  }
  for (std::int64_t b = 0; b < rows.num_blocks; ++b) {
    std::fill(scales + b * kPanelRows + rows.num_lanes, scales + (b + 1) * kPanelRows, padding);
  }
}

void write_shared_scales(const ScaleRows& rows, std::uint8_t* scales) {
  for (std::int64_t block = 0; block < rows.num_blocks; block += kSharedBlocks, scales += kSharedScaleBytes) {
    const std::int64_t count = std::min<std::int64_t>(kSharedBlocks, rows.num_blocks - block);
    std::fill_n(scales, kPanelRows, kExponentOfOne);
    std::fill_n(scales + kPanelRows, kPanelRows, std::uint8_t{0});
    for (std::int64_t lane = 0; lane < rows.num_lanes; ++lane) {
      const std::uint8_t* bytes = rows.bytes + lane * rows.num_blocks + block;
      const int lowest = byte_range(bytes, count).lowest;
      int shifts = 0;
      for (int b = 0; b < count; ++b) shifts |= (bytes[b] - lowest) << (2 * b);
      scales[lane] = static_cast<std::uint8_t>(lowest);
      scales[kPanelRows + lane] = static_cast<std::uint8_t>(shifts);
    }
  }
}

}  // namespace nybble
