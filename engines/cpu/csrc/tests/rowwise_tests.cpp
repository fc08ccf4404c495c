// What works on one row at a time, against double precision.

#include "kernel_tests.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

namespace {

void test_norm_and_activation(Index rows, Index columns) {
  const Floats x = normals(rows * 2 * columns), weight = normals(2 * columns);
  Floats out(x.size()), half(static_cast<std::size_t>(rows * columns));
  rms_norm({x.data(), nullptr, weight.data(), out.data(), 2 * columns, 1e-5F}, rows);
  silu_mul({x.data(), half.data(), columns}, rows);
  std::vector<double> norm_want, silu_want;
  for (Index m = 0; m < rows; ++m) {
    const float* row = x.data() + m * 2 * columns;
    double squares = 0.0;
    for (Index i = 0; i < 2 * columns; ++i) squares += static_cast<double>(row[i]) * row[i];
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(2 * columns) + 1e-5);
    for (Index i = 0; i < 2 * columns; ++i) norm_want.push_back(row[i] * factor * weight[static_cast<std::size_t>(i)]);
    for (Index i = 0; i < columns; ++i) silu_want.push_back(row[i] / (1.0 + std::exp(-row[i])) * row[columns + i]);
  }
  check(close(out, norm_want, 2e-6), "rms_norm");
  check(close(half, silu_want, 2e-6), "silu_mul");
}

}  // namespace

void test_rowwise() {
  for (const Index columns : {1, 8, 21, 150}) test_norm_and_activation(5, columns);
  const std::int32_t token = 5;
  const Floats table(5 * 4);
  Floats out(4);
  check_refused("token id", [&] { embed(&token, 1, table.data(), ElementType::kFloat32, 5, 4, out.data()); });
}

}  // namespace nybble
