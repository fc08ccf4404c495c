#include "integer_workspace.h"

#include <algorithm>
#include <type_traits>

#include "packed_scales.h"

namespace nybble {

namespace {

constexpr std::int64_t kSpareRows = 32;  // a tile kernel reads whole tiles, past the last row as well
constexpr std::int64_t kManyRows = 32;

std::size_t padded(std::int64_t num_bytes) { return (static_cast<std::size_t>(num_bytes) + 63) / 64 * 64; }

}  // namespace

std::int64_t slot_stride(std::int64_t num_rows) {
  return num_rows < kManyRows ? num_rows : (num_rows / kManyRows + 1) * kManyRows + kManyRows / 4;
}

IntegerRows IntegerWorkspace::rows(std::int64_t num_rows, std::int64_t num_columns, int group_size, int num_parts) {
  IntegerRows rows{};
  rows.stride = slot_stride(num_rows);
  num_slots_ = rows.stride * count_superblocks(num_columns);
  const std::int64_t num_blocks = num_slots_ * (kSuperblockColumns / group_size);
  // In the order of IntegerRows.
  const std::int64_t sizes[] = {(num_slots_ + kSpareRows) * num_parts * kSuperblockColumns,
                                num_slots_ * 4,
                                num_slots_ * 4,
                                num_slots_,
                                num_blocks * 4,
                                num_blocks * 4};
  std::size_t total = 0;
  for (const std::int64_t size : sizes) total += padded(size);
  auto* next = memory_.take<std::uint8_t>(static_cast<std::int64_t>(total));
  auto take = [&, i = 0](auto*& target) mutable {
    target = reinterpret_cast<std::remove_reference_t<decltype(target)>>(next);
    next += padded(sizes[i++]);
  };
  take(rows.codes);
  take(rows.scales);
  take(rows.biases);
  take(rows.regular);
  take(rows.block_biases);
  take(rows.block_scales);
  if (rows.stride != num_rows) std::fill_n(rows.regular, num_slots_, std::uint8_t{1});  // rows that do not exist
  return rows;
}

bool IntegerWorkspace::all_regular(const IntegerRows& rows) const {
  return std::find(rows.regular, rows.regular + num_slots_, 0) == rows.regular + num_slots_;
}

IntegerWorkspace& integer_workspace() {
  thread_local IntegerWorkspace workspace;
  return workspace;
}

}  // namespace nybble
