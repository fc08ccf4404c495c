// The screen of a head against all of its outputs.

#include "kernel_tests.h"

#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "head_screen.h"
#include "ops.h"

namespace nybble {

namespace {

void test_screen(Index outputs, Index columns, Index rows, float alike) {
  const std::string name = std::to_string(outputs) + "x" + std::to_string(columns) + "x" + std::to_string(rows);
  Floats weights = normals(outputs * columns);
  for (Index i = columns; i < outputs * columns; ++i) {  // outputs that lie close to each other
    float& weight = weights[static_cast<std::size_t>(i)];
    weight = alike * weights[static_cast<std::size_t>(i % columns)] + (1.0F - alike) * weight;
  }
  const DenseWeight head(weights.data(), outputs, columns, ElementType::kFloat32);
  const Floats x = normals(rows * columns);
  Floats logits(static_cast<std::size_t>(rows * outputs));
  dense_linear(x.data(), head, rows, logits.data());
  std::vector<std::int64_t> want(static_cast<std::size_t>(rows)), got(want.size(), -7);
  likeliest_tokens(logits.data(), rows, outputs, want.data());
  HeadScreen screen(head);
  screen.likeliest(x.data(), rows, got.data());
  check(got == want, "head screen " + name);
}

}  // namespace

void test_head_screen() {
  if (!HeadScreen::fits(2)) return;
  const Index shapes[][2] = {{1, 2}, {16, 128}, {33, 130}, {95, 386}};
  for (const auto& shape : shapes) {
    for (const Index rows : {1, 3, 12, 13, 31}) {
      for (const float alike : {0.0F, 0.999F}) test_screen(shape[0], shape[1], rows, alike);
    }
  }
}

}  // namespace nybble
