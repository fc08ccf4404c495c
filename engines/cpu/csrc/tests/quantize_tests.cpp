// Activations to FP4 codes: ties to even, quotients beside thresholds, and what NaN becomes.

#include "kernel_tests.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

namespace {

int doubled_code(float quotient) {
  const float m = std::fabs(quotient);
  const int low = m <= 0.25F ? 0 : (m < 0.75F ? 1 : (m <= 1.25F ? 2 : 3));
  const int high = m <= 2.5F ? 4 : (m < 3.5F ? 6 : (m <= 5.0F ? 8 : 12));
  const int code = m < 1.75F ? low : high;
  return quotient < 0.0F ? -code : code;
}

/// Numbers whose quotients by `divisor` lie where a code ends, and up to three floats away; four blocks, of which each
/// begins with 6 times the divisor.
std::array<float, 64> beside_thresholds(float divisor) {
  std::array<float, 64> x;
  x.fill(6.0F * divisor);
  std::size_t place = 0;
  for (const float threshold : {0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5.0F}) {
    float value = threshold * divisor;
    for (int i = 0; i < 3; ++i) value = std::nextafter(value, 0.0F);
    for (int i = 0; i < 7; ++i, value = std::nextafter(value, INFINITY), ++place) {
      x[place / 15 * 16 + place % 15 + 1] = i % 2 == 0 ? value : -value;
    }
  }
  return x;
}

}  // namespace

void test_nvfp4_thresholds() {
  constexpr std::uint32_t kStep = 2039;  // 1 tries every mantissa of a divisor, in minutes
  bool same = true;
  for (std::uint32_t mantissa = 0; mantissa < 1U << 23; mantissa += kStep) {
    const float divisor = std::ldexp(static_cast<float>((1U << 23) + mantissa), -23 - static_cast<int>(mantissa % 60));
    const std::array<float, 64> x = beside_thresholds(divisor);
    std::array<std::int8_t, 64> codes{};
    std::array<float, 4> scales{};
    quantize_nvfp4({x.data(), codes.data(), scales.data(), 64, divisor, true}, 1);
    for (const float scale : scales) same = same && scale == 1.0F;
    for (std::size_t i = 0; i < 64; ++i) same = same && codes[i] == doubled_code(x[i] / divisor);
  }
  check(same, "quantize_nvfp4 beside thresholds");
}

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
