// Linear layers of FP4 weights and float32 activations (W4A16 and reference numerics).
//
// One panel of 16 output rows is decoded to float32 a chunk of columns at a time; every batch row then runs over the
// chunk. Output (row, n) is kChains running sums, sum c taking columns k with k % kChains == c in ascending order,
// added at the end as a fixed tree: the order depends on k alone, never on the batch.

#include "block_scales.h"
#include "half_floats.h"
#include "kernels.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int64_t kChunkColumns = 128;  // 8 KiB of decoded weights, in L1
constexpr int64_t kAheadColumns = 2 * kChunkColumns;
constexpr int64_t kBlockRows = 32;  // batch rows per decoded chunk: 8 KiB of running sums

#if defined(NYBBLE_ISA_AVX512)
constexpr int kChains = 4;        // independent sums per output, k modulo kChains
constexpr int kWideRowTile = 12;  // batch rows sharing one pass over decoded weights, a chain at a time
#else
constexpr int kChains = 2;
constexpr int kWideRowTile = 4;
#endif

constexpr int kPanelGroup = kWideRowTile >= 12 ? 2 : 1;  // panels that share the loads of activations

struct Workspace {
  alignas(64) float weights[kPanelGroup][kChunkColumns * 16];
  alignas(64) float sums[kPanelGroup][kBlockRows * kChains * 16];
  /// What the first product of a chunk fetches while it multiplies, a line per column, of two panels in turns:
  /// decoding, with nothing to do meanwhile, would wait for memory.
  const std::uint8_t* ahead[2];
};

/// `Panels` panels times `Rows` rows from `row` on, a chain at a time, so that many sums fit into registers.
template <int Panels, int Rows>
void accumulate(Workspace& workspace, const float* x, int64_t row_stride, int64_t num_columns, int64_t row) {
  const float* first = x + row * row_stride;
  for (int c = 0; c < kChains; ++c) {
    F16 acc[Rows][Panels];
    const auto sum = [&](int r, int p) { return workspace.sums[p] + ((row + r) * kChains + c) * 16; };
    for (int r = 0; r < Rows; ++r) {
      for (int p = 0; p < Panels; ++p) acc[r][p] = load(sum(r, p));
    }
    for (int64_t k = c; k < num_columns; k += kChains) {
      __builtin_prefetch(workspace.ahead[k % 2] + k / 2 * 64, 0, 2);
      F16 w[Panels];
      for (int p = 0; p < Panels; ++p) w[p] = load(workspace.weights[p] + k * 16);
      for (int r = 0; r < Rows; ++r) {
        const F16 value = splat(first[r * row_stride + k]);
        for (int p = 0; p < Panels; ++p) acc[r][p] = fma(w[p], value, acc[r][p]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int p = 0; p < Panels; ++p) store(sum(r, p), acc[r][p]);
    }
  }
}

/// Runs over `num_rows` rows, or the first `Rows` of them; returns how many.
template <int Panels, int Rows>
int64_t accumulate_tile(Workspace& workspace, const float* x, int64_t row_stride, int64_t num_columns, int64_t row,
                        int64_t num_rows) {
  if constexpr (Rows > 1) {
    if (num_rows < Rows) {
      return accumulate_tile<Panels, Rows - 1>(workspace, x, row_stride, num_columns, row, num_rows);
    }
  }
  accumulate<Panels, Rows>(workspace, x, row_stride, num_columns, row);
  for (const std::uint8_t*& ahead : workspace.ahead) ahead = reinterpret_cast<const std::uint8_t*>(workspace.weights);
  return Rows;
}

template <int Panels>
void accumulate_rows(Workspace& workspace, const float* x, int64_t row_stride, int64_t num_columns, int64_t num_rows) {
  for (int64_t row = 0; row < num_rows;) {
    const int64_t num_tiles = (num_rows - row + kWideRowTile - 1) / kWideRowTile;
    const int64_t tile_rows = (num_rows - row + num_tiles - 1) / num_tiles;
    row += accumulate_tile<Panels, kWideRowTile>(workspace, x, row_stride, num_columns, row, tile_rows);
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

/// Where the outputs of a panel go.
struct PanelOutputs {
  int64_t first;
  int num_lanes;
};

/// Panels [panel, panel + Panels). `decode(panel, first_column, num_columns, weights)` fills [num_columns][16] float32
/// and returns where weights that will be wanted later lie.
template <int Panels, typename Decode, typename Outputs>
void run_panel_group(const Decode& decode, const Outputs& outputs, const float* x, float* out, int64_t num_rows,
                     int64_t num_columns, int64_t num_outputs, int64_t panel, Workspace& workspace) {
  for (int64_t row = 0; row < num_rows; row += kBlockRows) {
    const int64_t rows = min64(kBlockRows, num_rows - row);
    for (int p = 0; p < Panels; ++p) {
      for (int64_t i = 0; i < rows * kChains; ++i) store(workspace.sums[p] + i * 16, splat(0.0F));
    }
    for (int64_t k = 0; k < num_columns; k += kChunkColumns) {
      const int64_t columns = min64(kChunkColumns, num_columns - k);
      for (int p = 0; p < Panels; ++p) workspace.ahead[p] = decode(panel + p, k, columns, workspace.weights[p]);
      if (Panels == 1) workspace.ahead[1] = workspace.ahead[0];
      accumulate_rows<Panels>(workspace, x + row * num_columns + k, num_columns, columns, rows);
    }
    for (int p = 0; p < Panels; ++p) {
      const PanelOutputs target = outputs(panel + p);
      for (int64_t r = 0; r < rows; ++r) {
        store_partial(out + (row + r) * num_outputs + target.first, finish(workspace.sums[p] + r * kChains * 16),
                      target.num_lanes);
      }
    }
  }
}

template <typename Decode, typename Outputs>
void run_panels(const Decode& decode, const Outputs& outputs, const float* x, float* out, int64_t num_rows,
                int64_t num_columns, int64_t num_outputs, int64_t panel_begin, int64_t panel_end) {
  Workspace workspace;
  int64_t panel = panel_begin;
  for (; panel + kPanelGroup <= panel_end; panel += kPanelGroup) {
    run_panel_group<kPanelGroup>(decode, outputs, x, out, num_rows, num_columns, num_outputs, panel, workspace);
  }
  for (; panel < panel_end; ++panel) {
    run_panel_group<1>(decode, outputs, x, out, num_rows, num_columns, num_outputs, panel, workspace);
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
  const Fp4Panel& info = weight.panels[panel];
  for (int64_t k = 0; k < num_columns; k += weight.group_size) {
    const int64_t block = (first_column + k) / weight.group_size;
    const F16 scale = block_scales(info, data + weight.scale_offset, block, info.scale_table, 0);
    for (int64_t j = 0; j < weight.group_size; j += 8) {
      decode_step<Round>(data + (first_column + k + j) * 8, scale, weights + (k + j) * 16);
    }
  }
}

}  // namespace

void fp4_linear_f32(const Fp4F32Args& args, int64_t panel_begin, int64_t panel_end) {
  const auto decode = [&](int64_t panel, int64_t first, int64_t columns, float* weights) {
    if (args.weight.round_to_bfloat16) {
      decode_fp4<true>(args.weight, panel, first, columns, weights);
    } else {
      decode_fp4<false>(args.weight, panel, first, columns, weights);
    }
    return args.weight.data + static_cast<std::size_t>(panel) * args.weight.panel_bytes + (first + kAheadColumns) * 8;
  };
  const auto outputs = [&](int64_t panel) {
    const Fp4Panel& info = args.weight.panels[panel];
    return PanelOutputs{info.first_output, info.num_lanes};
  };
  run_panels(decode, outputs, args.x, args.out, args.num_rows, args.weight.num_columns, args.weight.num_rows,
             panel_begin, panel_end);
}

}  // namespace nybble::NYBBLE_ISA
