// Products of which half of the outputs are gates: the bits of the product and silu_mul one after the other.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "kernel_tests.h"
#include "ops.h"

namespace nybble {

namespace {

/// Gates and as many other outputs, scales near each other.
struct GatedCase {
  Index half, columns;
  int group;
  std::vector<std::uint8_t> packed, scales;
  Floats table;

  GatedCase(Index half_outputs, Index k, int g) : half(half_outputs), columns(k), group(g) {
    packed = bytes(2 * half * k / 2, 0, 255);
    scales = g == 32 ? bytes(2 * half * (k / g), 119, 121) : bytes(2 * half * (k / g), 40, 60);
    for (int i = 0; i < 256; ++i) {
      const int exponent = i >> 3 & 15, mantissa = i & 7;
      table.push_back(g == 32 ? std::ldexp(1.0F, i - 127)
                              : std::ldexp(exponent == 0 ? mantissa / 8.0F : 1.0F + mantissa / 8.0F,
                                           exponent == 0 ? -6 : exponent - 7));
    }
  }
  Fp4Weight weight() const {
    const Fp4Shard gates{packed.data(), scales.data(), table.data(), half};
    const Fp4Shard others{packed.data() + half * columns / 2, scales.data() + half * (columns / group), table.data(),
                          half};
    return Fp4Weight({gates, others}, columns, group, false);
  }
};

/// An input that is written when the product asks for it.
struct Input {
  Index columns;
  Floats source, x;

  Input(Index rows, Index k, float largest) : columns(k), source(normals(rows * k)), x(source.size()) {
    source[source.size() / 2] = largest;
  }
  ProductContext context(bool gated) {
    std::fill(x.begin(), x.end(), 0.0F);
    ProductContext context;
    context.gated = gated;
    context.write_rows = [this](Index begin, Index end) {
      std::copy_n(source.begin() + begin * columns, (end - begin) * columns, x.begin() + begin * columns);
    };
    return context;
  }
};

/// `run(out, gated)` is the product, plain or gated.
template <typename Run>
void check_gated(Index rows, Index half, const std::string& name, const Run& run) {
  Floats product(static_cast<std::size_t>(rows * 2 * half)), want(static_cast<std::size_t>(rows * half)),
      out(want.size(), -1.0F);
  run(product.data(), false);
  silu_mul({product.data(), want.data(), half}, rows);
  run(out.data(), true);
  check(same_bits(out, want), name);
}

void test_gated(Index rows, Index half, Index columns, int group, float largest) {
  const std::string name = std::to_string(rows) + "x2x" + std::to_string(half) + "x" + std::to_string(columns);
  const GatedCase c(half, columns, group);
  const Fp4Weight weight = c.weight();
  Input input(rows, columns, largest);
  check_gated(rows, half, "gated w4a16 " + name, [&](float* out, bool gated) {
    fp4_linear_w4a16(input.x.data(), weight, rows, out, input.context(gated));
  });
  std::vector<std::int8_t> codes(input.x.size());
  Floats scales(static_cast<std::size_t>(rows * (columns / group)));
  const QuantizeArgs args{input.source.data(), codes.data(), scales.data(), columns, 1.0F, false};
  group == 32 ? quantize_mxfp4(args, rows) : quantize_nvfp4(args, rows);
  check_gated(rows, half, "gated w4a4 " + name, [&](float* out, bool gated) {
    ProductContext context;
    context.gated = gated;
    fp4_linear_w4a4(codes.data(), scales.data(), weight, rows, out, context);
  });
}

}  // namespace

void test_gated_products() {
  for (const int group : {16, 32}) {
    const Index shapes[][3] = {{3, 16, 64}, {9, 16, 64}, {17, 48, 288}, {33, 80, 544}, {40, 8, 96}, {67, 40, 320}};
    for (const auto& shape : shapes) test_gated(shape[0], shape[1], shape[2], group, 1.0F);
    test_gated(530, 16, 96, group, 1.0F);    // more than a block of rows
    test_gated(20, 32, 96, group, 0x1p95F);  // W4A16: beyond what bfloat16 tiles may take
  }
  const KernelTable& table = kernels();
  for (const int group : {16, 32}) {
    const GatedCase gated(24, 64, group);
    const bool on_tiles = group == 16 ? table.tile_rows_w4a4 != nullptr : table.fp4_linear_tiles != nullptr;
    const bool in_pairs = group == 32 && table.reading.in_pairs;
    check(gates_outputs(gated.weight(), 9, true) == (on_tiles || in_pairs), "w4a4 on tiles or in pairs applies gates");
    check(gates_outputs(gated.weight(), 7, true) == in_pairs, "a handful of rows of w4a4 do in pairs alone");
    check(!gates_outputs(gated.weight(), 6, true), "few rows of w4a4 do not");
    const bool in_integers = table.fp4_linear_integer != nullptr;
    check(gates_outputs(gated.weight(), 32, true) == in_integers, "many rows of w4a4 do with integers");
    check(gates_outputs(gated.weight(), 32, false) == in_integers, "many rows of w4a16 do with integers");
    const bool in_bfloat16 = group == 16 ? table.tile_rows_w4a16 != nullptr : table.fp4_linear_tiles != nullptr;
    check(gates_outputs(gated.weight(), 5, false) == in_bfloat16, "w4a16 in bfloat16 or on tiles applies gates");
    check(!gates_outputs(gated.weight(), 4, false), "few rows of w4a16 do not");
  }
  const GatedCase c(24, 64, 16);
  const Fp4Weight whole({{c.packed.data(), c.scales.data(), c.table.data(), 48}}, 64, 16, false);
  check(!gates_outputs(whole, 40, true), "panels that hold gates and others do not");
}

}  // namespace nybble
