#pragma once
// Activations of a product on their way into the layout that its kernel reads.

#include "ops.h"
#include "thread_pool.h"

namespace nybble {

/// In elementary operations, as in parallel_for.
inline double row_cost(std::int64_t num_columns) { return static_cast<double>(num_columns); }

/// Of an output. A multiply-add in a vector lane costs a small part of an elementary operation.
inline double linear_cost(std::int64_t num_rows, std::int64_t num_columns) {
  return 1.0 * static_cast<double>(num_columns) * (1.0 + static_cast<double>(num_rows));
}

/// Writes a product's rows and brings them into its layout, `prepare(begin, end)`, while a thread still has them in its
/// cache.
template <typename Prepare>
void prepare_rows(const ProductContext& context, std::int64_t num_rows, double row_cost, const Prepare& prepare) {
  parallel_for(num_rows, context.row_cost + row_cost, [&](std::int64_t begin, std::int64_t end) {
    if (context.write_rows) context.write_rows(begin, end);
    prepare(begin, end);
  });
  fetch_while_waiting(context.next);
}

}  // namespace nybble
