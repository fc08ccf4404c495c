// Standalone check of every kernel on every instruction set, for sanitizers and for processors without our Python
// tests at hand (cross-compiled, under an emulator). Exits 0 when all checks hold. See ../README.md.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "amx_checks.h"
#include "amx_support.h"
#include "decoder_pass_tests.h"
#include "isa.h"
#include "ops.h"
#include "thread_pool.h"
#include "thread_pool_tests.h"
#include "token_draw.h"

namespace {

using nybble::kernels;
using Floats = std::vector<float>;
using Index = std::int64_t;

int g_failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++g_failures;
  std::printf("FAILED [%s, %d threads] %s\n", kernels().name, nybble::num_threads(), what.c_str());
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

bool close(const Floats& got, const std::vector<double>& want, double tolerance) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= tolerance * (1.0 + std::fabs(want[i])))) return false;
  }
  return got.size() == want.size();
}

std::mt19937 g_random(7);

Floats normals(Index count) {
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(g_random);
  return values;
}

std::vector<std::uint8_t> bytes(Index count, int low, int high) {
  std::uniform_int_distribution<int> uniform(low, high);
  std::vector<std::uint8_t> values(static_cast<std::size_t>(count));
  for (auto& value : values) value = static_cast<std::uint8_t>(uniform(g_random));
  return values;
}

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
  nybble::Fp4Weight weight() const {
    return nybble::Fp4Weight({{packed.data(), scales.data(), table.data(), outputs}}, columns, group, false,
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
        if ((b + 1) % nybble::summed_blocks(c.group) == 0 || b == blocks - 1) {
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
  const nybble::Fp4Weight weight = c.weight();
  const Floats x = normals(rows * columns);
  std::vector<std::int8_t> codes(x.size());
  Floats scales(static_cast<std::size_t>(rows * (columns / group)));
  nybble::QuantizeArgs args{x.data(), codes.data(), scales.data(), columns, 1.0F / kActivationScale, false};
  if (group == 32) {
    nybble::quantize_mxfp4(args, rows);
  } else {
    nybble::quantize_nvfp4(args, rows);
  }
  Floats out(static_cast<std::size_t>(rows * outputs), -1.0F);
  nybble::fp4_linear_w4a4(codes.data(), scales.data(), weight, rows, out.data());
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
  nybble::fp4_linear_f32(x.data(), weight, rows, out.data());
  check(close(out, want, 2e-2), "fp4_linear_f32 " + name);  // scales reach 2^13: sums of large terms cancel
  nybble::fp4_linear_w4a16(x.data(), weight, rows, out.data());
  check(close(out, want, 4.0), "fp4_linear_w4a16 " + name);
  Floats decoded(static_cast<std::size_t>(outputs * columns));
  weight.decode(decoded.data());
  nybble::dense_linear(x.data(), nybble::DenseWeight(decoded.data(), outputs, columns, nybble::ElementType::kFloat32),
                       rows, out.data());
  check(close(out, want, 2e-2), "dense_linear " + name);
}

// Scales near each other, as trained weights have them: superblocks share exponents.
void test_shared_exponents(Index rows, Index outputs, Index columns, int spread) {
  const std::string name = std::to_string(rows) + "x" + std::to_string(outputs) + "x" + std::to_string(columns);
  const Fp4Case c(outputs, columns, 32, 120, 120 + spread);
  const nybble::Fp4Weight weight = c.weight();
  Floats x = normals(rows * columns);
  for (std::size_t i = 0; i < x.size(); i += 7) x[i] *= i % 3 == 0 ? 40.0F : 1.0F;
  std::vector<std::int8_t> codes(x.size());
  Floats scales(static_cast<std::size_t>(rows * (columns / 32)));
  nybble::quantize_mxfp4({x.data(), codes.data(), scales.data(), columns, 0.0F, false}, rows);
  Floats out(static_cast<std::size_t>(rows * outputs), -1.0F);
  nybble::fp4_linear_w4a4(codes.data(), scales.data(), weight, rows, out.data());
  check(same_bits(out, w4a4_reference(c, codes, scales, rows)), "fp4_linear_w4a4, shared exponents " + name);
  nybble::fp4_linear_w4a16(x.data(), weight, rows, out.data());
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
    nybble::fp4_linear_w4a16(x.data() + m * columns, weight, 1, alone.data());
    check(std::memcmp(alone.data(), out.data() + m * outputs, alone.size() * sizeof(float)) == 0,
          "fp4_linear_w4a16 alone " + name);
  }
}

void test_half_types() {
  std::vector<std::uint16_t> bfloat16(33 * 7), float16(33 * 7);
  Floats x(7, 0.0F), out(33);
  x[3] = 2.0F;
  for (std::size_t i = 0; i < bfloat16.size(); ++i) {
    bfloat16[i] = static_cast<std::uint16_t>(0x3f80 + i);  // 1 + i/128
    float16[i] = static_cast<std::uint16_t>(0x3c00 + i);   // 1 + i/1024
  }
  nybble::dense_linear(x.data(), nybble::DenseWeight(bfloat16.data(), 33, 7, nybble::ElementType::kBfloat16), 1,
                       out.data());
  check(out[0] == 2.0F * (1.0F + 3.0F / 128.0F), "dense_linear bfloat16");
  nybble::dense_linear(x.data(), nybble::DenseWeight(float16.data(), 33, 7, nybble::ElementType::kFloat16), 1,
                       out.data());
  check(out[32] == 2.0F * (1.0F + 227.0F / 1024.0F), "dense_linear float16");
}

void test_quantize_ties() {
  Floats x(32, 0.0F);
  const float inputs[] = {0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5.0F, 6.0F, -5.0F};
  const int want[] = {0, 2, 2, 4, 4, 8, 8, 12, -8};
  std::memcpy(x.data(), inputs, sizeof(inputs));
  std::vector<std::int8_t> codes(32, 99);
  Floats scale(1);
  const nybble::QuantizeArgs args{x.data(), codes.data(), scale.data(), 32, 0.0F, false};
  nybble::quantize_mxfp4(args, 1);
  check(scale[0] == 1.0F, "quantize_mxfp4 scale");
  for (std::size_t i = 0; i < 9; ++i) check(codes[i] == want[i], "quantize_mxfp4 tie " + std::to_string(i));
  x[20] = NAN;
  nybble::quantize_mxfp4(args, 1);
  check(std::isnan(scale[0]) && codes[7] == 0, "quantize_mxfp4 of NaN");
}

void test_rowwise(Index rows, Index columns) {
  const Floats x = normals(rows * 2 * columns), weight = normals(2 * columns);
  Floats out(x.size()), half(static_cast<std::size_t>(rows * columns));
  nybble::rms_norm({x.data(), nullptr, weight.data(), out.data(), 2 * columns, 1e-5F}, rows);
  nybble::silu_mul({x.data(), half.data(), columns}, rows);
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

struct Sequence {
  Index length, heads, kv_heads, head_dim, block_size;
  Floats k, v, q;
  Floats k_cache, v_cache;
  std::vector<std::int32_t> table;

  Sequence(Index n, Index h, Index kv, Index d, Index block)
      : length(n), heads(h), kv_heads(kv), head_dim(d), block_size(block) {
    const Index blocks = (n + block - 1) / block;
    k = normals(n * kv * d);
    v = normals(n * kv * d);
    q = normals(n * h * d);
    k_cache.assign(static_cast<std::size_t>(blocks * kv * block * d), NAN);
    v_cache = k_cache;
    std::vector<std::int64_t> slots;
    for (Index i = 0; i < blocks; ++i) table.push_back(static_cast<std::int32_t>(blocks - 1 - i));
    for (Index i = 0; i < n; ++i) slots.push_back(table[static_cast<std::size_t>(i / block)] * block + i % block);
    nybble::kv_write({cache(), k.data(), v.data(), slots.data()}, n);
  }
  nybble::KvCache cache() {
    return {k_cache.data(), v_cache.data(), static_cast<Index>(table.size()), kv_heads,
            block_size,     head_dim,       nybble::ElementType::kFloat32};
  }
  void attend(Index first, Index count, Index window, float* out) {
    const std::int32_t starts[] = {0, static_cast<std::int32_t>(count)};
    const std::int32_t context = static_cast<std::int32_t>(first + count);
    const Index row = heads * head_dim;
    nybble::paged_attention({cache(), q.data() + first * row, out + first * row, heads, 0.2F, window},
                            {count, 1, static_cast<Index>(table.size()), table.data(), starts, &context});
  }
  std::vector<double> reference(Index window) const {
    std::vector<double> out;
    for (Index i = 0; i < length; ++i) {
      for (Index h = 0; h < heads; ++h) {
        const Index kv = h / (heads / kv_heads);
        std::vector<double> sums(static_cast<std::size_t>(head_dim), 0.0);
        double total = 0.0;
        for (Index j = window > 0 ? std::max<Index>(0, i - window + 1) : 0; j <= i; ++j) {
          const float* key = k.data() + (j * kv_heads + kv) * head_dim;
          const float* value = v.data() + (j * kv_heads + kv) * head_dim;
          const float* query = q.data() + (i * heads + h) * head_dim;
          double score = 0.0;
          for (Index d = 0; d < head_dim; ++d) score += static_cast<double>(query[d]) * key[d];
          const double weight = std::exp(0.2 * score);
          total += weight;
          for (Index d = 0; d < head_dim; ++d) sums[static_cast<std::size_t>(d)] += weight * value[d];
        }
        for (const double sum : sums) out.push_back(sum / total);
      }
    }
    return out;
  }
};

void test_attention(Index head_dim, Index block_size, Index window) {
  Sequence sequence(45, 6, 2, head_dim, block_size);
  Floats whole(sequence.q.size()), single(whole.size());
  sequence.attend(0, 45, window, whole.data());
  for (Index i = 0; i < 45; ++i) sequence.attend(i, 1, window, single.data());
  const std::string name = "paged_attention, head_dim " + std::to_string(head_dim);
  check(close(whole, sequence.reference(window), 1e-5), name);
  check(same_bits(whole, single), name + ", decode against prefill");
}

// Keys and values that the type holds exactly, in caches of exactly the bytes they need. E4M3: scales after the rows.
void test_narrow_cache(nybble::ElementType type, Index head_dim, Index block_size, Index heads, Index window) {
  Sequence sequence(77, heads, 2, head_dim, block_size);
  for (Floats* rows : {&sequence.k, &sequence.v}) {
    for (float& value : *rows) value = std::round(2.0F * value) / 2.0F;
  }
  const Index num_blocks = static_cast<Index>(sequence.table.size());
  const Index row_bytes = type == nybble::ElementType::kFloat8E4m3 ? head_dim + 1 : 2 * head_dim;
  std::vector<std::uint8_t> keys(static_cast<std::size_t>(num_blocks * 2 * block_size * row_bytes), 0xff);
  std::vector<std::uint8_t> values = keys;
  const nybble::KvCache cache{keys.data(), values.data(), num_blocks, 2, block_size, head_dim, type};
  std::vector<std::int64_t> slots;
  for (Index i = 0; i < 77; ++i) {
    slots.push_back(sequence.table[static_cast<std::size_t>(i / block_size)] * block_size + i % block_size);
  }
  nybble::kv_write({cache, sequence.k.data(), sequence.v.data(), slots.data()}, 77);
  Floats out(sequence.q.size()), single(out.size());
  const auto attend = [&](Index first, Index count, float* target) {
    const std::int32_t starts[] = {0, static_cast<std::int32_t>(count)};
    const std::int32_t context = static_cast<std::int32_t>(first + count);
    const Index row = heads * head_dim;
    nybble::paged_attention({cache, sequence.q.data() + first * row, target + first * row, heads, 0.2F, window},
                            {count, 1, num_blocks, sequence.table.data(), starts, &context});
  };
  attend(0, 77, out.data());
  for (Index i = 0; i < 77; i += i % 3 + 1) attend(i, std::min<Index>(i % 3 + 1, 77 - i), single.data());
  const std::string name = "paged_attention, bytes a row: " + std::to_string(row_bytes);
  check(close(out, sequence.reference(window), 1e-5), name);
  check(same_bits(out, single), name + ", few rows against prefill");
}

// More than one partition, alone on the threads and many at once.
void test_partitions(Index window) {
  Sequence sequence(1030, 2, 1, 16, 16);
  Floats whole(sequence.q.size()), part(whole.size());
  sequence.attend(0, 1030, window, whole.data());
  check(close(whole, sequence.reference(window), 1e-5), "paged_attention, partitions");
  for (const Index first : {0, 511, 512, 1020, 1029}) {
    std::fill(part.begin(), part.end(), 0.0F);
    const Index count = std::min<Index>(3, 1030 - first);
    sequence.attend(first, count, window, part.data());
    const std::size_t begin = static_cast<std::size_t>(first) * 32;
    const std::size_t size = static_cast<std::size_t>(count) * 32;
    check(std::memcmp(part.data() + begin, whole.data() + begin, size * sizeof(float)) == 0,
          "paged_attention, partitions, rows from " + std::to_string(first));
  }
}

void test_bounds() {
  Sequence sequence(20, 2, 1, 32, 16);
  Floats out(sequence.q.size());
  const auto refuses = [](const char* what, const auto& call) {
    try {
      call();
      check(false, what);
    } catch (const std::invalid_argument&) {
    }
  };
  sequence.table[1] = 2;
  refuses("block id", [&] { sequence.attend(0, 20, 0, out.data()); });
  const std::int64_t slot = 32;
  refuses("slot", [&] { nybble::kv_write({sequence.cache(), out.data(), out.data(), &slot}, 1); });
  const std::int32_t token = 5;
  refuses("token id",
          [&] { nybble::embed(&token, 1, out.data(), nybble::ElementType::kFloat32, 5, 4, sequence.q.data()); });
}

/// Draws under every filter against one that goes through all tokens; logits with many ties, and with infinities.
void test_draws(Index num_tokens) {
  Floats logits = normals(num_tokens);
  for (float& logit : logits) logit = std::round(logit * 8.0F) / 4.0F;
  for (std::size_t i = 3; i < logits.size(); i += 5) logits[i] = -std::numeric_limits<float>::infinity();
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = *std::max_element(logits.begin(), logits.end());
  for (const float distance : {infinity, 0.5F}) {
    for (const Index top_k : {0, 1, 20}) {
      for (const double top_p : {1.0, 0.5}) {
        const Index first = nybble::draw_token(logits.data(), num_tokens, {1.0F, 1e9F, distance, top_k, top_p, 0.0});
        const Index last =
            nybble::draw_token(logits.data(), num_tokens, {1.0F, 1e9F, distance, top_k, top_p, 0.9999999});
        const auto may_be_drawn = [&](Index token) {
          return token >= 0 && token < num_tokens && largest - logits[static_cast<std::size_t>(token)] <= distance &&
                 (top_k != 1 || logits[static_cast<std::size_t>(token)] == largest);
        };
        check(may_be_drawn(first) && may_be_drawn(last) && first <= last, "draw_token");
      }
    }
  }
  logits[0] = std::numeric_limits<float>::quiet_NaN();  // refused above this layer; here no access may go astray
  const Index drawn = nybble::draw_token(logits.data(), num_tokens, {1.0F, 1e9F, infinity, 2, 0.5, 0.5});
  check(drawn >= 0 && drawn < num_tokens, "draw_token with NaN");
}

void test_everything() {
  const Index shapes[][3] = {{1, 1, 32}, {3, 17, 96}, {7, 40, 160}, {9, 33, 288}, {33, 64, 64}};
  for (const auto& shape : shapes) {
    for (const int group : {16, 32}) test_fp4_linear(shape[0], shape[1], shape[2], group);
  }
  for (const auto& shape : shapes) {
    for (const int spread : {0, 3, 5}) test_shared_exponents(shape[0], shape[1], shape[2], spread);
  }
  test_fp4_linear(40, 49, 10768, 16);  // bfloat16 tiles: two chunks of columns, two pairs of panels
  test_half_types();
  test_quantize_ties();
  for (const Index columns : {1, 8, 21, 150}) test_rowwise(5, columns);
  for (const Index head_dim : {32, 40, 80, 128}) {
    for (const Index block_size : {1, 16, 24}) {
      for (const Index window : {0, 7}) test_attention(head_dim, block_size, window);
      for (const Index window : {0, 19}) {
        for (const Index heads : {2, 8}) {
          test_narrow_cache(nybble::ElementType::kFloat8E4m3, head_dim, block_size, heads, window);
          test_narrow_cache(nybble::ElementType::kBfloat16, head_dim, block_size, heads, window);
        }
      }
    }
  }
  for (const Index window : {0, 530}) test_partitions(window);
  test_bounds();
  for (const Index num_tokens : {1, 17, 255, 5003}) test_draws(num_tokens);
  check(nybble::decoder_pass_is_consistent(), "decoder pass: whole, in parts, beside another sequence");
}

}  // namespace

int main() {
  std::vector<std::string> isas = nybble::available_isas();
  if (std::find(isas.begin(), isas.end(), "avx512") != isas.end()) {
    isas.emplace_back("amx-emulated");
    check(nybble::int8_tiles_agree(*nybble::amx_emulated_kernels()), "self-check of int8 tiles");
    check(nybble::bfloat16_tiles_agree(*nybble::amx_emulated_kernels()), "self-check of bfloat16 tiles");
    check(nybble::attention_tiles_agree(*nybble::amx_emulated_kernels()), "self-check of attention on tiles");
    check(!nybble::attention_tiles_agree(*nybble::avx512_kernels()), "self-check of attention: another order of sums");
  }
  check(nybble::shares_are_fetched_once(), "the beginning of a share fetched once");
  check(nybble::units_are_done_once(), "every unit of a parallel region once");
  std::printf("AMX: %s\n", nybble::amx_status().c_str());
  for (const std::string& isa : isas) {
    nybble::set_isa(isa);
    for (const int threads : {1, 3}) {
      nybble::set_num_threads(threads);
      test_everything();
    }
    std::printf("%s: done\n", isa.c_str());
  }
  if (g_failures > 0) std::printf("%d checks failed\n", g_failures);
  return g_failures == 0 ? 0 : 1;
}
