// Activations to FP4 codes: ties to even, and what NaN becomes.

#include "kernel_tests.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

void test_quantize_ties() {
  Floats x(32, 0.0F);
  const float inputs[] = {0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5.0F, 6.0F, -5.0F};
  const int want[] = {0, 2, 2, 4, 4, 8, 8, 12, -8};
  std::memcpy(x.data(), inputs, sizeof(inputs));
  std::vector<std::int8_t> codes(32, 99);
  Floats scale(1);
  const QuantizeArgs args{x.data(), codes.data(), scale.data(), 32, 0.0F, false};
  quantize_mxfp4(args, 1);
  check(scale[0] == 1.0F, "quantize_mxfp4 scale");
  for (std::size_t i = 0; i < 9; ++i) check(codes[i] == want[i], "quantize_mxfp4 tie " + std::to_string(i));
  x[20] = NAN;
  quantize_mxfp4(args, 1);
  check(std::isnan(scale[0]) && codes[7] == 0, "quantize_mxfp4 of NaN");
}

}  // namespace nybble
