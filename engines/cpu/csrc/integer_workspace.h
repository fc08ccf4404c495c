#pragma once
// Memory for the activations of integer products.

#include "kernel_table.h"
#include "scratch.h"

namespace nybble {

/// Rows between superblocks, as IntegerRows wants it: 1 or 2 KiB off the multiples of 4 KiB.
std::int64_t slot_stride(std::int64_t num_rows);

/// Room for the activations of one integer product.
class IntegerWorkspace {
 public:
  IntegerRows rows(std::int64_t num_rows, std::int64_t num_columns, int group_size, int num_parts);

  /// Of the last rows().
  bool all_regular(const IntegerRows& rows) const;

 private:
  Scratch memory_;
  std::int64_t num_slots_ = 0;
};

/// The calling thread's, kept between calls.
IntegerWorkspace& integer_workspace();

}  // namespace nybble
