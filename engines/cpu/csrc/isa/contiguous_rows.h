#pragma once
// Activations of a block of rows, superblock after superblock without the other rows between: at a distance of a power
// of two, as that of 512 rows is, all superblocks would share a few of L2's sets.

#include <cstdlib>
#include <cstring>

#include "integer_rows.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Memory of the calling thread, which only grows.
class ContiguousRows {
 public:
  ContiguousRows() = default;
  ~ContiguousRows() { std::free(memory_); }
  ContiguousRows(const ContiguousRows&) = delete;
  ContiguousRows& operator=(const ContiguousRows&) = delete;

  /// Codes of rows [row_begin, row_end), [superblocks][rows][num_parts][128], and room for a tile past the end; null
  /// where there is no memory.
  const std::int8_t* copy(const IntegerArgs& args, int64_t row_begin, int64_t row_end) {
    const int64_t row_bytes = args.num_parts * kSuperblockColumns;
    const int64_t num_superblocks = (args.weight.num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
    const int64_t block_bytes = (row_end - row_begin) * row_bytes;
    if (!reserve(num_superblocks * block_bytes + 32 * row_bytes)) return nullptr;
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      const std::int8_t* rows = args.rows.codes + (superblock * args.num_rows + row_begin) * row_bytes;
      std::memcpy(memory_ + superblock * block_bytes, rows, static_cast<std::size_t>(block_bytes));
    }
    return memory_;
  }

 private:
  bool reserve(int64_t num_bytes) {
    if (num_bytes <= num_bytes_) return true;
    std::free(memory_);
    num_bytes_ = (num_bytes + 4095) / 4096 * 4096;
    memory_ = static_cast<std::int8_t*>(std::aligned_alloc(4096, static_cast<std::size_t>(num_bytes_)));
    if (memory_ == nullptr)
      num_bytes_ = 0;
    else
      std::memset(memory_, 0, static_cast<std::size_t>(num_bytes_));
    return memory_ != nullptr;
  }

  std::int8_t* memory_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace

}  // namespace nybble::NYBBLE_ISA
