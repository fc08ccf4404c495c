// Bounds of a head's outputs from an int8 copy of its weights (head_screen.h): products of bytes, which VNNI does at
// four times the rate of float32, and half the bytes of bfloat16.

#include "../upcoming_read.h"
#include "float_bits.h"
#include "integer_weights_avx512.h"
#include "shared_exponents_avx512.h"
#include "unroll.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kMaxRows = 12;  // of two sums each
constexpr int kSteps = kScreenBlockColumns / 4;
constexpr int64_t kRowBytes = 2 * kScreenBlockColumns;
constexpr int kMaxScreenExponent = 40;
constexpr float kAboveRounding = 1.001F;  // of a norm's square, summed in float32
constexpr float kLeastError = 1e-30F;     // more than what underflows

/// Rows of a panel, and their part of what is fetched into L2 meanwhile: every `fetch_steps`-th step a line of the next
/// panel, which so comes in evenly however many tiles this one takes.
struct ScreenTile {
  int64_t first_row, panel;
  const std::uint8_t* ahead;
  int fetch_steps;  // a power of two
};

/// A panel's outputs of `Rows` rows.
template <int Rows>
[[gnu::noinline]] void screen_tile(const ScreenArgs& args, const ScreenTile& tile) {
  const int64_t first_row = tile.first_row, panel = tile.panel;
  const int fetch_mask = tile.fetch_steps - 1;
  const std::uint8_t* ahead = tile.ahead;
  constexpr bool kFetchesRows = Rows >= 5;  // fewer stay in L1 by themselves
  const std::uint8_t* weights = args.weight.data + panel * args.weight.panel_bytes;
  const std::int8_t* x = args.rows.codes + first_row * kRowBytes;
  __m512i acc[Rows][2];
  NYBBLE_UNROLL for (int i = 0; i < 2 * Rows; ++i) {
    acc[i / 2][i % 2] = _mm512_set1_epi32(args.rows.biases[first_row * 2 + i]);
  }
  for (int64_t block = 0; block < args.weight.num_columns / kScreenBlockColumns; ++block) {
    const std::int8_t* next = x + args.num_rows * kRowBytes;
    for (int step = 0; step < kSteps; ++step, weights += 64, x += 4) {
      if ((step & fetch_mask) == 0) {
        fetch_line_into_l2(ahead);
        ahead += 64;
      }
      prefetch_line(weights + args.fetch.near_bytes);
      if (kFetchesRows) {
        prefetch_line(next + step * 64);
        if (Rows > 8) prefetch_line(next + (step + kSteps) * 64);
      }
      const __m512i raw = _mm512_load_si512(weights);
      NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
        dot_product(acc[r][0], raw, x + r * kRowBytes);
        dot_product(acc[r][1], raw, x + r * kRowBytes + kScreenBlockColumns);
      }
    }
    x = next;
  }
  const auto* bounds = reinterpret_cast<const ScreenBounds*>(weights);
  const F16 scale = load(bounds->scale), radius = load(bounds->radius), reach = load(bounds->reach);
  const auto lanes = static_cast<__mmask16>((1U << min64(kPanelRows, args.weight.num_rows - panel * kPanelRows)) - 1U);
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    const float step = args.rows.steps[first_row + r];
    const F16 integers = fma(F16{_mm512_cvtepi32_ps(acc[r][0])}, splat(256.0F), F16{_mm512_cvtepi32_ps(acc[r][1])});
    const F16 value = integers * (scale * splat(step));
    const F16 error = fma(radius, splat(args.rows.norms[first_row + r]), fma(reach, splat(step), splat(kLeastError)));
    const int64_t place = (first_row + r) * args.num_panels + panel;
    args.floors[place] = _mm512_mask_reduce_max_ps(lanes, (value - error).v);
    args.ceilings[place] = _mm512_mask_reduce_max_ps(lanes, (value + error).v);
  }
}

template <int Rows>
void run_tile(const ScreenArgs& args, int64_t num_rows, const ScreenTile& tile) {
  if (num_rows == Rows) {
    screen_tile<Rows>(args, tile);
  } else if constexpr (Rows > 1) {
    run_tile<Rows - 1>(args, num_rows, tile);
  }
}

}  // namespace

void screen_outputs(const ScreenArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t num_tiles = (args.num_rows + kMaxRows - 1) / kMaxRows;
  int fetch_steps = 1;
  while (fetch_steps < num_tiles && fetch_steps < kSteps) fetch_steps *= 2;
  const int64_t fetched_bytes = args.weight.num_columns * kPanelRows / fetch_steps;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    ScreenTile tile{0, panel, args.weight.data + (panel + 1) * args.weight.panel_bytes, fetch_steps};
    for (int64_t i = 0; i < num_tiles; ++i) {  // of nearly equal size
      const int64_t num_rows = (args.num_rows - tile.first_row + num_tiles - i - 1) / (num_tiles - i);
      run_tile<kMaxRows>(args, num_rows, tile);
      tile.first_row += num_rows;
      tile.ahead += fetched_bytes;
    }
  }
}

void prepare_screen_row(const float* x, int64_t num_columns, const ScreenArgs& args, int64_t row) {
  const auto present = [&](int64_t column) {
    return static_cast<__mmask16>((1U << max64(0, min64(16, num_columns - column))) - 1U);
  };
  __m512 squares = _mm512_setzero_ps();
  __m512i magnitudes = _mm512_setzero_si512();
  for (int64_t k = 0; k < num_columns; k += 16) {
    const __m512 values = _mm512_maskz_loadu_ps(present(k), x + k);
    squares = _mm512_fmadd_ps(values, values, squares);
    magnitudes =
        _mm512_max_epu32(magnitudes, _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff)));
  }
  const std::uint32_t largest = _mm512_reduce_max_epu32(magnitudes);
  const int exponent = static_cast<int>(largest >> 23);
  // Squares neither overflow nor, where they count, underflow. False for a NaN.
  const bool usable = exponent >= 127 - kMaxScreenExponent && exponent <= 127 + kMaxScreenExponent;
  args.rows.norms[row] = usable ? __builtin_sqrtf(_mm512_reduce_add_ps(squares)) * kAboveRounding : kUnknownNorm;
  // From mantissa 127 / 64 on the next power of two, so that integers fit into two signed bytes.
  const int step = usable ? exponent - 14 + ((largest & 0x7fffffU) >= 0x7c0000U ? 1 : 0) : 127;
  args.rows.steps[row] = bits_to_float(static_cast<std::uint32_t>(step) << 23);
  const __m512 inverse = _mm512_set1_ps(usable ? bits_to_float(static_cast<std::uint32_t>(254 - step) << 23) : 0.0F);
  std::int32_t sums[2] = {0, 0};
  for (int64_t begin = 0; begin < args.weight.num_columns; begin += kScreenBlockColumns) {
    std::int8_t* high = args.rows.codes + (begin / kScreenBlockColumns * args.num_rows + row) * kRowBytes;
    std::int8_t* low = high + kScreenBlockColumns;
    for (int64_t i = 0; i < kScreenBlockColumns; i += 16) {  // columns past the last are zeros
      const __m512 values = _mm512_maskz_loadu_ps(present(begin + i), x + begin + i);
      split_integers(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)), high + i, low + i);
    }
    sums[0] += sum_block(high, 64) + sum_block(high + 64, 64);
    sums[1] += sum_block(low, 64) + sum_block(low + 64, 64);
  }
  args.rows.biases[row * 2] = -kScreenBias * sums[0];
  args.rows.biases[row * 2 + 1] = -kScreenBias * sums[1];
}

}  // namespace nybble::NYBBLE_ISA
