// FP4 products against plain loops: W4A4 bit for bit, the others within their bounds.

#include "kernel_tests.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace nybble {

namespace {

constexpr int kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

constexpr float kGlobalScale = 0.0123F;      // of an NVFP4 weight
constexpr float kActivationScale = 0.0034F;  // and of its input

/// E8M0 for groups of 32, E4M3 for groups of 16.
float scale_value(int group, int byte) {
  if (group == 32) return std::ldexp(1.0F, byte - 127);
  const int exponent = byte >> 3, mantissa = byte & 7;
  return exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                       : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

struct Fp4Case {
  Index outputs, columns;
  int group;
  std::vector<std::uint8_t> packed, scales;
  Floats values, table;  // what a scale byte stands for, without and with the tensor's scale
  float global_scale;

  Fp4Case(Index n, Index k, int g, int lowest = 100, int highest = 140) : outputs(n), columns(k), group(g) {
    packed = bytes(n * k / 2, 0, 255);
    scales = g == 32 ? bytes(n * (k / g), lowest, highest) : bytes(n * (k / g), 0, 126);
    global_scale = g == 32 ? 1.0F : kGlobalScale;
    for (int i = 0; i < 256; ++i) {
      values.push_back(scale_value(g, g == 32 ? i : i & 127));
      table.push_back(values.back() * global_scale);
    }
  }
  int code(Index row, Index k) const {
    const int byte = packed[static_cast<std::size_t>(row * columns / 2 + k / 2)];
    return kDoubled[k % 2 == 0 ? byte & 15 : byte >> 4];
  }
  float scale(Index row, Index block) const {
    return table[scales[static_cast<std::size_t>(row * (columns / group) + block)]];
  }
  float block_scale(Index row, Index block) const {
    return values[scales[static_cast<std::size_t>(row * (columns / group) + block)]];
  }
  float activation_scale() const { return group == 32 ? 1.0F : kActivationScale; }
  Fp4Weight weight() const {
    return Fp4Weight({{packed.data(), scales.data(), table.data(), outputs}}, columns, group, false,
                     activation_scale());
  }
};

Floats w4a4_reference(const Fp4Case& c, const std::vector<std::int8_t>& codes, const Floats& scales, Index rows) {
  Floats out;
  const Index blocks = c.columns / c.group;
  for (Index m = 0; m < rows; ++m) {
    for (Index n = 0; n < c.outputs; ++n) {
      float acc = 0.0F;
      float part = 0.0F;
      for (Index b = 0; b < blocks; ++b) {
        int sum = 0;
        for (Index k = b * c.group; k < (b + 1) * c.group; ++k) {
          sum += c.code(n, k) * codes[static_cast<std::size_t>(m * c.columns + k)];
        }
        const float product = (0.25F * c.block_scale(n, b)) * scales[static_cast<std::size_t>(m * blocks + b)];
        const float contribution = static_cast<float>(sum) * std::fmin(product, 3.40282347e+38F);
        part = part + contribution;
        if ((b + 1) % summed_blocks(c.group) == 0 || b == blocks - 1) {
          acc = acc + part;
          part = 0.0F;
        }
      }
      out.push_back(acc * (c.global_scale * c.activation_scale()));
    }
  }
  return out;
}

void test_fp4_linear(Index rows, Index outputs, Index columns, int group) {
  const std::string name = std::to_string(rows) + "x" + std::to_string(outputs) + "x" + std::to_string(columns);
  const Fp4Case c(outputs, columns, group);
  const Fp4Weight weight = c.weight();
  const Floats x = normals(rows * columns);
  std::vector<std::int8_t> codes(x.size());
  Floats scales(static_cast<std::size_t>(rows * (columns / group)));
  QuantizeArgs args{x.data(), codes.data(), scales.data(), columns, 1.0F / kActivationScale, false};
  if (group == 32) {
    quantize_mxfp4(args, rows);
  } else {
    quantize_nvfp4(args, rows);
  }
  Floats out(static_cast<std::size_t>(rows * outputs), -1.0F);
  fp4_linear_w4a4(codes.data(), scales.data(), weight, rows, out.data());
  check(same_bits(out, w4a4_reference(c, codes, scales, rows)), "fp4_linear_w4a4 " + name);

  std::vector<double> want;
  for (Index m = 0; m < rows; ++m) {
    for (Index n = 0; n < outputs; ++n) {
      double sum = 0.0;
      for (Index k = 0; k < columns; ++k) {
        sum += 0.5 * c.code(n, k) * c.scale(n, k / group) * x[static_cast<std::size_t>(m * columns + k)];
      }
      want.push_back(sum);
    }
  }
  fp4_linear_f32(x.data(), weight, rows, out.data());
  check(close(out, want, 2e-2), "fp4_linear_f32 " + name);  // scales reach 2^13: sums of large terms cancel
  fp4_linear_w4a16(x.data(), weight, rows, out.data());
  check(close(out, want, 4.0), "fp4_linear_w4a16 " + name);
  Floats decoded(static_cast<std::size_t>(outputs * columns));
  weight.decode(decoded.data());
  dense_linear(x.data(), DenseWeight(decoded.data(), outputs, columns, ElementType::kFloat32), rows, out.data());
  check(close(out, want, 2e-2), "dense_linear " + name);
}

// Scales near each other, as trained weights have them: superblocks share exponents. `one_far`: but for one output's
// last block, whose panel then keeps its scales as they are.
void test_shared_exponents(Index rows, Index outputs, Index columns, int spread, bool one_far) {
  const std::string name = std::to_string(rows) + "x" + std::to_string(outputs) + "x" + std::to_string(columns);
  Fp4Case c(outputs, columns, 32, 120, 120 + spread);
  if (one_far) c.scales[static_cast<std::size_t>((outputs / 2 + 1) * (columns / 32) - 1)] = 60;
  const Fp4Weight weight = c.weight();
  Floats x = normals(rows * columns);
  for (std::size_t i = 0; i < x.size(); i += 7) x[i] *= i % 3 == 0 ? 40.0F : 1.0F;
  std::vector<std::int8_t> codes(x.size());
  Floats scales(static_cast<std::size_t>(rows * (columns / 32)));
  quantize_mxfp4({x.data(), codes.data(), scales.data(), columns, 0.0F, false}, rows);
  Floats out(static_cast<std::size_t>(rows * outputs), -1.0F);
  fp4_linear_w4a4(codes.data(), scales.data(), weight, rows, out.data());
  check(same_bits(out, w4a4_reference(c, codes, scales, rows)), "fp4_linear_w4a4, shared exponents " + name);
  fp4_linear_w4a16(x.data(), weight, rows, out.data());
  bool within = true;
  for (Index m = 0; m < rows; ++m) {
    const float* row = x.data() + m * columns;
    double largest = 0.0;
    for (Index k = 0; k < columns; ++k) largest = std::max(largest, std::fabs(static_cast<double>(row[k])));
    for (Index n = 0; n < outputs; ++n) {
      double sum = 0.0, bound = 1e-30;
      for (Index k = 0; k < columns; ++k) {
        const double w = 0.5 * c.code(n, k) * c.scale(n, k / 32);
        sum += w * row[k];
        bound += std::fabs(w) * (std::ldexp(largest, -15) + 2e-6 * std::fabs(row[k]));
      }
      within = within && std::fabs(out[static_cast<std::size_t>(m * outputs + n)] - sum) <= bound;
    }
  }
  check(within, "fp4_linear_w4a16, shared exponents " + name);
  Floats alone(static_cast<std::size_t>(outputs));
  for (Index m = 0; m < rows; ++m) {
    fp4_linear_w4a16(x.data() + m * columns, weight, 1, alone.data());
    check(std::memcmp(alone.data(), out.data() + m * outputs, alone.size() * sizeof(float)) == 0,
          "fp4_linear_w4a16 alone " + name);
  }
}

/// W4A4 against the plain loops for these activations.
void check_w4a4(const Fp4Case& c, const Floats& x, Index rows, const std::string& name) {
  std::vector<std::int8_t> codes(x.size());
  Floats scales(static_cast<std::size_t>(rows * (c.columns / 32)));
  quantize_mxfp4({x.data(), codes.data(), scales.data(), c.columns, 0.0F, false}, rows);
  Floats out(static_cast<std::size_t>(rows * c.outputs), -1.0F);
  fp4_linear_w4a4(codes.data(), scales.data(), c.weight(), rows, out.data());
  check(same_bits(out, w4a4_reference(c, codes, scales, rows)), "fp4_linear_w4a4, " + name);
}

// Blocks of activations 1 to 2^-8 times as large: tiles take most rows in two parts, more of them than a tile holds.
// Weights' scales on both sides of 1: whatever stands for the scale of a row out of reach must not make infinities.
void test_spread_exponents(Index rows, Index outputs, Index columns, int lowest) {
  const Fp4Case c(outputs, columns, 32, lowest, lowest + 3);
  Floats x = normals(rows * columns);
  for (Index i = 0; i < rows * columns; ++i) {
    float& value = x[static_cast<std::size_t>(i)];
    value = std::ldexp(value, -static_cast<int>((i / 32 * 5 + i / columns) % 9));
  }
  check_w4a4(c, x, rows, "exponents apart " + std::to_string(lowest));
}

// A row's exponents are far apart in one superblock between others: what they add is added in its place.
void test_one_irregular_superblock(Index rows) {
  const Index columns = 5 * 128 + 64;
  const Fp4Case c(49, columns, 32, 120, 123);
  Floats x = normals(rows * columns);
  for (const Index row : {rows / 2, rows - 1}) {
    const Index first = row * columns + (row % 2 == 0 ? 2 : 3) * 128;
    for (Index k = first; k < first + 32; ++k) x[static_cast<std::size_t>(k)] *= 0x1p-12F;
  }
  check_w4a4(c, x, rows, "one irregular superblock, rows " + std::to_string(rows));
}

}  // namespace

void test_fp4_linears() {
  const Index shapes[][3] = {{1, 1, 32}, {3, 17, 96}, {7, 40, 160}, {9, 33, 288}, {33, 64, 64}};
  for (const auto& shape : shapes) {
    for (const int group : {16, 32}) test_fp4_linear(shape[0], shape[1], shape[2], group);
  }
  for (const auto& shape : shapes) {
    for (const int spread : {0, 3, 5}) test_shared_exponents(shape[0], shape[1], shape[2], spread, false);
    test_shared_exponents(shape[0], shape[1], shape[2], 3, true);
  }
  for (const int lowest : {120, 126}) {
    test_spread_exponents(9, 33, 96, lowest);
    test_spread_exponents(45, 49, 352, lowest);
  }
  for (Index rows = 6; rows <= 26; ++rows) test_one_irregular_superblock(rows);
  test_fp4_linear(40, 49, 10768, 16);  // bfloat16 tiles: two chunks of columns, two pairs of panels
}

}  // namespace nybble
