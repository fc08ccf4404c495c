// FP4 weights times FP4 activations: exact integer sums inside a block, float32 between blocks.
//
// Per output, runs of summed_blocks() blocks in ascending order (MXFP4: four, 128 columns; NVFP4: two, 32 columns), and
// in each its blocks b in ascending order:
//   part = 0, then for each b: part = part + float(sum_b) * min((0.25f * w_scale) * a_scale, FLT_MAX)
//   acc  = acc + part
// and at the end out = acc * (global_scale * activation_scale). Separate float32 roundings (quarter scale, its product,
// the contribution, the sums), nothing fused, so that every instruction set and the NumPy reference agree bit for bit.
// With MXFP4 a run's sum is exact in the usual case, which the integer kernels use (integer_rows.h). With NVFP4 the
// scales are E4M3 values, the tensors' scales left for the end: every contribution is exact (12 bits times 4 times 4),
// and a run is rounded once. That is also what one AMX bfloat16 tile product does with 32 columns
// (bfloat16_tiles.h). sum_b is the integer dot product of doubled codes, hence the 0.25. The scales' product overflows
// only where any non-zero sum would too; clamping it keeps a zero sum a zero, while a NaN scale (non-finite
// activations) still makes the row NaN: min returns its second operand then.

#include "block_scales.h"
#include "kernels.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kWeightBias = 12;  // makes doubled weight codes unsigned: [-12, 12] -> [0, 24]

inline F16 add_block(F16 acc, F16 sum, F16 quarter_scale, float activation_scale) {
  const F16 product = min(splat(kMaxFloat), quarter_scale * splat(activation_scale));
  return acc + sum * product;
}

template <int Group>
inline bool ends_run(int64_t block, int64_t num_blocks) {
  constexpr int64_t kBlocks = summed_blocks(Group);
  return block % kBlocks == kBlocks - 1 || block == num_blocks - 1;
}

template <int Rows>
inline void add_parts(F16 (&part)[Rows], F16 (&acc)[Rows]) {
  for (int r = 0; r < Rows; ++r) {
    acc[r] = acc[r] + part[r];
    part[r] = splat(0.0F);
  }
}

#if defined(NYBBLE_ISA_AVX2)

constexpr int kTile = 4;

template <int Rows, int Group>
void tile(const W4A4Args& args, int64_t panel_index, int64_t first_row) {
  const Fp4View& weight = args.weight;
  const Fp4Panel& panel = weight.panels[panel_index];
  const std::uint8_t* codes = weight.data + static_cast<std::size_t>(panel_index) * weight.panel_bytes;
  const std::uint8_t* panel_scales = codes + weight.scale_offset;
  const int64_t num_blocks = weight.num_columns / Group;
  const std::int8_t* x = args.codes + first_row * weight.num_columns;
  const float* x_scales = args.scales + first_row * num_blocks;
  const std::int32_t* biases = args.biases + first_row * num_blocks;
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  F16 acc[Rows], part[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = part[r] = splat(0.0F);
  for (int64_t block = 0; block < num_blocks; ++block) {
    // 16-bit partial sums: at most 8 products pairs of 2 * 24 * 12 each, 4608.
    __m256i sums[Rows][2] = {};
    for (int step = 0; step < Group / 8; ++step) {
      for (int half = 0; half < 2; ++half) {
        const __m256i raw =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + (block * (Group / 8) + step) * 64 + half * 32));
        const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, nibble));
        const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(raw, 4), nibble));
        for (int r = 0; r < Rows; ++r) {
          std::int32_t first, second;
          const std::int8_t* row = x + r * weight.num_columns + block * Group + step * 8;
          std::memcpy(&first, row, 4);
          std::memcpy(&second, row + 4, 4);
          sums[r][half] = _mm256_add_epi16(sums[r][half], _mm256_maddubs_epi16(low, _mm256_set1_epi32(first)));
          sums[r][half] = _mm256_add_epi16(sums[r][half], _mm256_maddubs_epi16(high, _mm256_set1_epi32(second)));
        }
      }
    }
    const F16 quarter = block_scales(panel, panel_scales, block, panel.quarter_table, -2);
    for (int r = 0; r < Rows; ++r) {
      const __m256i bias = _mm256_set1_epi32(biases[r * num_blocks + block]);
      const __m256i low = _mm256_add_epi32(bias, _mm256_madd_epi16(sums[r][0], ones));
      const __m256i high = _mm256_add_epi32(bias, _mm256_madd_epi16(sums[r][1], ones));
      const F16 sum = {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
      part[r] = add_block(part[r], sum, quarter, x_scales[r * num_blocks + block]);
    }
    if (ends_run<Group>(block, num_blocks)) add_parts(part, acc);
  }
  const F16 factor = splat(panel.global_scale * weight.activation_scale);
  for (int r = 0; r < Rows; ++r) {
    store_partial(args.out + (first_row + r) * weight.num_rows + panel.first_output, acc[r] * factor, panel.num_lanes);
  }
}

#else

constexpr int kTile = 4;

constexpr int kStepLanes = 64;  // 16 rows x 4 columns, as stored

/// Doubled codes of 8 columns x 16 rows, low nibbles (columns 0..3) then high ones (4..7), each [16 rows][4].
inline void decode_step(const std::uint8_t* codes, std::int16_t* weights) {
  std::int8_t doubled[2 * kStepLanes];
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < kStepLanes; ++i) {
      const auto code = static_cast<std::uint8_t>(half == 0 ? codes[i] & 15 : codes[i] >> 4);
      const auto m = static_cast<std::int8_t>(code & 7);
      const auto magnitude = static_cast<std::int8_t>(m + (m > 4 ? m - 4 : 0) + (m == 7 ? 2 : 0));
      doubled[half * kStepLanes + i] = static_cast<std::int8_t>(code & 8 ? -magnitude : magnitude);
    }
  }
  for (int i = 0; i < 2 * kStepLanes; ++i) weights[i] = doubled[i];
}

/// Adds 4 columns of products into 64 sums, one per (row, column modulo 4): at most 8 * 144 each.
inline void add_products(const std::int16_t* weights, const std::int8_t* x, std::int16_t* sums) {
  std::int16_t pattern[8];
  for (int i = 0; i < 8; ++i) pattern[i] = x[i % 4];
  for (int i = 0; i < kStepLanes; i += 8) {
    for (int j = 0; j < 8; ++j) {
      sums[i + j] = static_cast<std::int16_t>(sums[i + j] + weights[i + j] * pattern[j]);
    }
  }
}

template <int Rows, int Group>
void tile(const W4A4Args& args, int64_t panel_index, int64_t first_row) {
  const Fp4View& weight = args.weight;
  const Fp4Panel& panel = weight.panels[panel_index];
  const std::uint8_t* codes = weight.data + static_cast<std::size_t>(panel_index) * weight.panel_bytes;
  const std::uint8_t* panel_scales = codes + weight.scale_offset;
  const int64_t num_blocks = weight.num_columns / Group;
  F16 acc[Rows], part[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = part[r] = splat(0.0F);
  for (int64_t block = 0; block < num_blocks; ++block) {
    alignas(64) std::int16_t weights[Group / 8][2 * kStepLanes];
    for (int step = 0; step < Group / 8; ++step) {
      decode_step(codes + (block * (Group / 8) + step) * kStepLanes, weights[step]);
    }
    const F16 quarter = block_scales(panel, panel_scales, block, panel.quarter_table, -2);
    for (int r = 0; r < Rows; ++r) {
      const std::int8_t* row = args.codes + (first_row + r) * weight.num_columns + block * Group;
      alignas(64) std::int16_t sums[kStepLanes] = {};
      for (int step = 0; step < Group / 8; ++step) {
        add_products(weights[step], row + step * 8, sums);
        add_products(weights[step] + kStepLanes, row + step * 8 + 4, sums);
      }
      alignas(64) float values[16];
      for (int lane = 0; lane < 16; ++lane) {
        const std::int16_t* four = sums + lane * 4;
        values[lane] = static_cast<float>(four[0] + four[1] + four[2] + four[3]);
      }
      part[r] = add_block(part[r], load(values), quarter, args.scales[(first_row + r) * num_blocks + block]);
    }
    if (ends_run<Group>(block, num_blocks)) add_parts(part, acc);
  }
  const F16 factor = splat(panel.global_scale * weight.activation_scale);
  for (int r = 0; r < Rows; ++r) {
    store_partial(args.out + (first_row + r) * weight.num_rows + panel.first_output, acc[r] * factor, panel.num_lanes);
  }
}

#endif

template <int Rows, int Group>
void remainder(const W4A4Args& args, int64_t panel, int64_t row, int64_t num_rows) {
  if (num_rows == Rows) {
    tile<Rows, Group>(args, panel, row);
  } else if constexpr (Rows > 1) {
    remainder<Rows - 1, Group>(args, panel, row, num_rows);
  }
}

template <int Group>
void run_panels(const W4A4Args& args, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t row = 0; row < args.num_rows; row += kTile) {
      remainder<kTile, Group>(args, panel, row, min64(kTile, args.num_rows - row));
    }
  }
}

}  // namespace

void w4a4_biases(const std::int8_t* codes, int64_t num_blocks, int group_size, std::int32_t* biases) {
  for (int64_t block = 0; block < num_blocks; ++block) {
    std::int32_t sum = 0;
    for (int k = 0; k < group_size; ++k) sum += codes[block * group_size + k];
    biases[block] = -kWeightBias * sum;
  }
}

void fp4_linear_w4a4(const W4A4Args& args, int64_t panel_begin, int64_t panel_end) {
  if (args.weight.group_size == 32) {
    run_panels<32>(args, panel_begin, panel_end);
  } else {
    run_panels<16>(args, panel_begin, panel_end);
  }
}

}  // namespace nybble::NYBBLE_ISA
