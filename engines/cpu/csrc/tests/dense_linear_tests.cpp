// Products with unquantized weights; the FP4 tests hold decoded float32 weights against their own.

#include "kernel_tests.h"

#include <cstdint>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

void test_half_types() {
  std::vector<std::uint16_t> bfloat16(33 * 7), float16(33 * 7);
  Floats x(7, 0.0F), out(33);
  x[3] = 2.0F;
  for (std::size_t i = 0; i < bfloat16.size(); ++i) {
    bfloat16[i] = static_cast<std::uint16_t>(0x3f80 + i);  // 1 + i/128
    float16[i] = static_cast<std::uint16_t>(0x3c00 + i);   // 1 + i/1024
  }
  dense_linear(x.data(), DenseWeight(bfloat16.data(), 33, 7, ElementType::kBfloat16), 1, out.data());
  check(out[0] == 2.0F * (1.0F + 3.0F / 128.0F), "dense_linear bfloat16");
  dense_linear(x.data(), DenseWeight(float16.data(), 33, 7, ElementType::kFloat16), 1, out.data());
  check(out[32] == 2.0F * (1.0F + 227.0F / 1024.0F), "dense_linear float16");
}

}  // namespace nybble
