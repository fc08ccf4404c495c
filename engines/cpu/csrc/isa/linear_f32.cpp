// Linear layers on float32 activations: FP4 weights (W4A16 and reference numerics) and unquantized weights.
//
// One panel of 16 output rows is decoded to float32 a chunk of columns at a time; every batch row then runs over the
// chunk. Output (row, n) is kChains running sums, sum c taking columns k with k % kChains == c in ascending order,
// added at the end as a fixed tree: the order depends on k alone, never on the batch.

#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int64_t kChunkColumns = 128;  // 8 KiB of decoded weights, in L1
constexpr int64_t kBlockRows = 32;      // batch rows per decoded chunk: 8 KiB of running sums

struct Workspace {
  alignas(64) float weights[kChunkColumns * 16];
  alignas(64) float sums[kBlockRows * kChains * 16];
};

template <int Rows>
void accumulate(const float* weights, const float* x, int64_t row_stride, int64_t num_columns, float* sums) {
  F16 acc[Rows][kChains];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < kChains; ++c) acc[r][c] = load(sums + (r * kChains + c) * 16);
  }
  int64_t k = 0;
  for (; k + kChains <= num_columns; k += kChains) {
    for (int c = 0; c < kChains; ++c) {
      const F16 w = load(weights + (k + c) * 16);
      for (int r = 0; r < Rows; ++r) acc[r][c] = fma(w, splat(x[r * row_stride + k + c]), acc[r][c]);
    }
  }
  for (int c = 0; k + c < num_columns; ++c) {
    const F16 w = load(weights + (k + c) * 16);
    for (int r = 0; r < Rows; ++r) acc[r][c] = fma(w, splat(x[r * row_stride + k + c]), acc[r][c]);
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < kChains; ++c) store(sums + (r * kChains + c) * 16, acc[r][c]);
  }
}

void accumulate_rows(const float* weights, const float* x, int64_t row_stride, int64_t num_columns, int64_t num_rows,
                     float* sums) {
  int64_t r = 0;
  for (; r + kRowTile <= num_rows; r += kRowTile) {
    accumulate<kRowTile>(weights, x + r * row_stride, row_stride, num_columns, sums + r * kChains * 16);
  }
  for (; r < num_rows; ++r) {
    accumulate<1>(weights, x + r * row_stride, row_stride, num_columns, sums + r * kChains * 16);
  }
}

F16 finish(const float* sums) {
  F16 total[kChains];
  for (int c = 0; c < kChains; ++c) total[c] = load(sums + c * 16);
  for (int half = kChains / 2; half > 0; half /= 2) {
    for (int c = 0; c < half; ++c) total[c] = total[c] + total[c + half];
  }
  return total[0];
}

/// `decode(first_column, num_columns, weights)` fills [num_columns][16] float32.
template <typename Decode>
void run_panel(const Decode& decode, const float* x, float* out, int64_t num_rows, int64_t num_columns,
               int64_t num_outputs, int64_t first_output, int num_lanes, Workspace& workspace) {
  for (int64_t row = 0; row < num_rows; row += kBlockRows) {
    const int64_t rows = min64(kBlockRows, num_rows - row);
    for (int64_t i = 0; i < rows * kChains; ++i) store(workspace.sums + i * 16, splat(0.0F));
    for (int64_t k = 0; k < num_columns; k += kChunkColumns) {
      const int64_t columns = min64(kChunkColumns, num_columns - k);
      decode(k, columns, workspace.weights);
      accumulate_rows(workspace.weights, x + row * num_columns + k, num_columns, columns, rows, workspace.sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      store_partial(out + (row + r) * num_outputs + first_output, finish(workspace.sums + r * kChains * 16), num_lanes);
    }
  }
}

[[maybe_unused]] constexpr float kE2m1[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                              -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

/// 8 columns x 16 rows of codes times the rows' scales -> [8][16] float32, rounded to bfloat16 on request.
template <bool Round>
inline void decode_step(const std::uint8_t* codes, F16 scale, float* weights) {
#if defined(NYBBLE_ISA_AVX512)
  const __m512i raw = _mm512_loadu_si512(codes);
  const __m512 values = _mm512_loadu_ps(kE2m1);
  for (int j = 0; j < 4; ++j) {
    // vpermps uses the low four bits of each lane's index only, so the other nibbles need no masking.
    const __m512i low = _mm512_srl_epi32(raw, _mm_cvtsi32_si128(8 * j));
    const __m512i high = _mm512_srl_epi32(raw, _mm_cvtsi32_si128(8 * j + 4));
    const F16 a = F16{_mm512_permutexvar_ps(low, values)} * scale;
    const F16 b = F16{_mm512_permutexvar_ps(high, values)} * scale;
    store(weights + j * 16, Round ? round_bfloat16(a) : a);
    store(weights + (4 + j) * 16, Round ? round_bfloat16(b) : b);
  }
#elif defined(NYBBLE_ISA_AVX2)
  const __m256 magnitudes = _mm256_loadu_ps(kE2m1);
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
  const auto decode = [&](__m256i raw, int shift) {
    // vpermps uses the low three bits of each lane's index: the magnitude; bit 3 is the sign.
    const __m256i code = _mm256_srl_epi32(raw, _mm_cvtsi32_si128(shift));
    const __m256i sign_bit = _mm256_and_si256(_mm256_slli_epi32(code, 28), sign);
    return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, code), _mm256_castsi256_ps(sign_bit));
  };
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
  for (int k = 0; k < 8; ++k) {
    const int shift = 8 * (k % 4) + (k < 4 ? 0 : 4);
    const F16 a = F16{decode(first, shift), decode(second, shift)} * scale;
    store(weights + k * 16, Round ? round_bfloat16(a) : a);
  }
#else
  I4 raw[4];
  std::memcpy(raw, codes, sizeof(raw));
  for (int k = 0; k < 8; ++k) {
    const int shift = 8 * (k % 4) + (k < 4 ? 0 : 4);
    const F16 values = lanewise([&](int i) {
      const I4 code = raw[i] >> shift;
      const I4 m = code & 7;
      const I4 doubled = m + ((m - 4) & (m > 4)) + ((m == 7) & 2);  // 0 1 2 3 4 6 8 12
      const I4 negative = -((code >> 3) & 1);
      return __builtin_convertvector((doubled ^ negative) - negative, F4) * 0.5F;
    });
    const F16 a = values * scale;
    store(weights + k * 16, Round ? round_bfloat16(a) : a);
  }
#endif
}

template <bool Round>
void decode_fp4(const Fp4View& weight, int64_t panel, int64_t first_column, int64_t num_columns, float* weights) {
  const std::uint8_t* data = weight.data + static_cast<std::size_t>(panel) * weight.panel_bytes;
  const float* table = weight.panels[panel].scale_table;
  for (int64_t k = 0; k < num_columns; k += weight.group_size) {
    const int64_t group = (first_column + k) / weight.group_size;
    const std::uint8_t* bytes = data + weight.scale_offset + group * 16;
    alignas(64) float scales[16];
    for (int lane = 0; lane < 16; ++lane) scales[lane] = table[bytes[lane]];
    const F16 scale = load(scales);
    for (int64_t j = 0; j < weight.group_size; j += 8) {
      decode_step<Round>(data + (first_column + k + j) * 8, scale, weights + (k + j) * 16);
    }
  }
}

void decode_dense(const DenseView& weight, int64_t panel, int64_t first_column, int64_t num_columns, float* weights) {
  const int64_t offset = (panel * weight.num_columns + first_column) * 16;
  if (weight.element_type == ElementType::kFloat32) {
    std::memcpy(weights, weight.data + offset * 4, static_cast<std::size_t>(num_columns) * 64);
    return;
  }
  const auto* halves = reinterpret_cast<const std::uint16_t*>(weight.data + offset * 2);
  if (weight.element_type == ElementType::kBfloat16) {
    for (int64_t k = 0; k < num_columns; ++k) store(weights + k * 16, load_bfloat16(halves + k * 16));
  } else {
    for (int64_t k = 0; k < num_columns; ++k) store(weights + k * 16, load_float16(halves + k * 16));
  }
}

inline F16 load_column(const DenseView& weight, int64_t index) {
  if (weight.element_type == ElementType::kFloat32) return load(reinterpret_cast<const float*>(weight.data) + index);
  const auto* halves = reinterpret_cast<const std::uint16_t*>(weight.data) + index;
  return weight.element_type == ElementType::kBfloat16 ? load_bfloat16(halves) : load_float16(halves);
}

/// Weights fetched ahead by a pass over a panel: every `step`-th cache line from `first_line` on.
struct DensePrefetch {
  int64_t ahead_bytes;
  int64_t first_line;
  int64_t step;
};

/// Few rows: weights go from memory into the products, in the order of `accumulate`, so the bits are the same.
template <int Rows>
void dense_panel(const DenseArgs& args, int64_t panel, int64_t first_row, const DensePrefetch& prefetch) {
  constexpr int64_t kNearBytes = 3072;  // from L2 into L1
  const DenseView weight = args.weight;
  const int64_t num_columns = weight.num_columns;
  const int64_t first = panel * num_columns * 16;
  const int64_t column_bytes = weight.element_type == ElementType::kFloat32 ? 64 : 32;
  const float* x = args.x + first_row * num_columns;
  F16 acc[Rows][kChains];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < kChains; ++c) acc[r][c] = splat(0.0F);
  }
  int64_t k = 0;
  for (; k + kChains <= num_columns; k += kChains) {
    const std::uint8_t* here = weight.data + (first / 16 + k) * column_bytes;
    for (int64_t offset = 0; offset < kChains * column_bytes; offset += 64) {
      __builtin_prefetch(here + kNearBytes + offset, 0, 3);
    }
    for (int64_t line = prefetch.first_line; line < kChains * column_bytes / 64; line += prefetch.step) {
      __builtin_prefetch(here + prefetch.ahead_bytes + line * 64, 0, 2);
    }
    for (int c = 0; c < kChains; ++c) {
      const F16 w = load_column(weight, first + (k + c) * 16);
      for (int r = 0; r < Rows; ++r) acc[r][c] = fma(w, splat(x[r * num_columns + k + c]), acc[r][c]);
    }
  }
  for (int c = 0; k + c < num_columns; ++c) {
    const F16 w = load_column(weight, first + (k + c) * 16);
    for (int r = 0; r < Rows; ++r) acc[r][c] = fma(w, splat(x[r * num_columns + k + c]), acc[r][c]);
  }
  const int lanes = static_cast<int>(min64(16, weight.num_rows - panel * 16));
  for (int r = 0; r < Rows; ++r) {
    for (int half = kChains / 2; half > 0; half /= 2) {
      for (int c = 0; c < half; ++c) acc[r][c] = acc[r][c] + acc[r][c + half];
    }
    store_partial(args.out + (first_row + r) * weight.num_rows + panel * 16, acc[r][0], lanes);
  }
}

template <int Rows>
void dense_rows(const DenseArgs& args, int64_t panel, int64_t row, const DensePrefetch& prefetch) {
  if (args.num_rows - row == Rows) {
    dense_panel<Rows>(args, panel, row, prefetch);
  } else if constexpr (Rows > 1) {
    dense_rows<Rows - 1>(args, panel, row, prefetch);
  }
}

}  // namespace

void fp4_linear_f32(const Fp4F32Args& args, int64_t panel_begin, int64_t panel_end) {
  Workspace workspace;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const auto decode = [&](int64_t first, int64_t columns, float* weights) {
      if (args.weight.round_to_bfloat16) {
        decode_fp4<true>(args.weight, panel, first, columns, weights);
      } else {
        decode_fp4<false>(args.weight, panel, first, columns, weights);
      }
    };
    const Fp4Panel& info = args.weight.panels[panel];
    run_panel(decode, args.x, args.out, args.num_rows, args.weight.num_columns, args.weight.num_rows, info.first_output,
              info.num_lanes, workspace);
  }
}

void dense_linear(const DenseArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.num_rows <= 2 * kRowTile) {
    constexpr int64_t kFarBytes = 16384;  // into L2
    const int64_t element_bytes = args.weight.element_type == ElementType::kFloat32 ? 4 : 2;
    // Two passes over a panel share the fetching of the next one: the second finds its own panel in L2, and memory
    // would stand idle meanwhile.
    const bool two_passes = args.num_rows > kRowTile;
    const int64_t ahead = two_passes ? args.weight.num_columns * 16 * element_bytes : kFarBytes;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      if (two_passes) dense_panel<kRowTile>(args, panel, 0, {ahead, 0, 2});
      dense_rows<kRowTile>(args, panel, two_passes ? kRowTile : 0, {ahead, two_passes ? 1 : 0, two_passes ? 2 : 1});
    }
    return;
  }
  Workspace workspace;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const auto decode = [&](int64_t first, int64_t columns, float* weights) {
      decode_dense(args.weight, panel, first, columns, weights);
    };
    const int lanes = static_cast<int>(min64(16, args.weight.num_rows - panel * 16));
    run_panel(decode, args.x, args.out, args.num_rows, args.weight.num_columns, args.weight.num_rows, panel * 16, lanes,
              workspace);
  }
}

}  // namespace nybble::NYBBLE_ISA
