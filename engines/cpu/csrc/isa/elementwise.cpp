// Row-wise kernels around the linear layers. Every row is computed alone, in a fixed order.

#include "exponential.h"
#include "float_bits.h"
#include "kernels.h"
#include "lanes.h"
#include "silu.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Sum of squares: 16 lanes by column modulo 16, then a fixed tree.
float mean_of_squares(const float* x, int64_t num_columns) {
  F16 acc = splat(0.0F);
  int64_t i = 0;
  for (; i + 16 <= num_columns; i += 16) {
    const F16 value = load(x + i);
    acc = fma(value, value, acc);
  }
  if (i < num_columns) {
    const F16 value = load_partial(x + i, num_columns - i);
    acc = fma(value, value, acc);
  }
  return sum_lanes(acc) / static_cast<float>(num_columns);
}

/// out = f(a) over whole vectors, then once more over the padded rest.
template <typename Function>
inline void map_columns(int64_t num_columns, const Function& function) {
  int64_t i = 0;
  for (; i + 16 <= num_columns; i += 16) function(i, int64_t{16});
  if (i < num_columns) function(i, num_columns - i);
}

inline F16 load_some(const float* p, int64_t count) { return count == 16 ? load(p) : load_partial(p, count); }

}  // namespace

void rms_norm(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = args.x + row * args.num_columns;
    if (args.residual != nullptr) {
      float* residual = args.residual + row * args.num_columns;
      map_columns(args.num_columns, [&](int64_t i, int64_t count) {
        store_partial(residual + i, load_some(residual + i, count) + load_some(x + i, count), count);
      });
      x = residual;
    }
    const F16 factor = splat(1.0F / __builtin_sqrtf(mean_of_squares(x, args.num_columns) + args.epsilon));
    float* out = args.out + row * args.num_columns;
    map_columns(args.num_columns, [&](int64_t i, int64_t count) {
      store_partial(out + i, load_some(args.weight + i, count) * (load_some(x + i, count) * factor), count);
    });
  }
}

void rope(const RopeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t half = args.head_dim / 2;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* cos = args.cos + args.positions[row] * half;
    const float* sin = args.sin + args.positions[row] * half;
    for (int64_t head = 0; head < args.num_heads; ++head) {
      float* first = args.q + (row * args.num_heads + head) * args.head_dim;
      float* second = first + half;
      map_columns(half, [&](int64_t i, int64_t count) {
        const F16 a = load_some(first + i, count), b = load_some(second + i, count);
        const F16 c = load_some(cos + i, count), s = load_some(sin + i, count);
        store_partial(first + i, a * c - b * s, count);
        store_partial(second + i, b * c + a * s, count);
      });
    }
  }
}

void silu_mul(const SiluMulArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* gate = args.gate_up + row * 2 * args.num_columns;
    const float* up = gate + args.num_columns;
    float* out = args.out + row * args.num_columns;
    map_columns(args.num_columns, [&](int64_t i, int64_t count) {
      store_partial(out + i, silu_mul(load_some(gate + i, count), load_some(up + i, count)), count);
    });
  }
}

void softmax_row(const float* logits, int64_t num_columns, float* out) {
  float largest = logits[0];
  for (int64_t i = 1; i < num_columns; ++i) {
    largest = logits[i] > largest || logits[i] != logits[i] ? logits[i] : largest;
  }
  map_columns(num_columns, [&](int64_t i, int64_t count) {
    store_partial(out + i, exp(load_some(logits + i, count) - splat(largest)), count);
  });
  F16 acc = splat(0.0F);
  map_columns(num_columns, [&](int64_t i, int64_t count) { acc = acc + load_some(out + i, count); });
  const F16 total = splat(sum_lanes(acc));
  map_columns(num_columns,
              [&](int64_t i, int64_t count) { store_partial(out + i, load_some(out + i, count) / total, count); });
}

void add_scaled(const float* x, float weight, int64_t num_columns, float* out) {
  for (int64_t i = 0; i < num_columns; ++i) out[i] += weight * x[i];
}

void to_float32(const void* values, ElementType type, int64_t count, float* out) {
  if (type == ElementType::kFloat32) {
    std::memcpy(out, values, static_cast<std::size_t>(count) * sizeof(float));
  } else if (type == ElementType::kBfloat16) {
    const auto* halves = static_cast<const std::uint16_t*>(values);
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(halves[i]);
  } else {
    const auto* halves = static_cast<const std::uint16_t*>(values);
    for (int64_t i = 0; i < count; ++i) out[i] = float16_to_float(halves[i]);
  }
}

}  // namespace nybble::NYBBLE_ISA
