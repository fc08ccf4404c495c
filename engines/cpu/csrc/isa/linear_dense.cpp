// Linear layers with unquantized weights: the head, routers.
//
// Two panels of 16 outputs lie next to each other in memory, so that a pass reads one stream and shares the loads of
// activations. The sum of an output: blocks of kDenseBlockColumns columns, each summed from zero in ascending order,
// are added in ascending order. It depends on the columns alone, never on the batch.
//
// A block's first tile of rows takes the weights from memory; when there are further tiles it leaves them behind as
// float32 in L1.

#include "half_floats.h"
#include "kernels.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

namespace {

#if defined(NYBBLE_ISA_AVX512)
constexpr int kTileRows = 12;  // 24 sums, 2 or 4 vectors of weights, an activation: 32 registers
#elif defined(NYBBLE_ISA_AVX2)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 2;
#endif

constexpr int64_t kBlockRows = 96;  // rows that share a block's widened weights
constexpr int kMemoryBoundRows = 6;
constexpr int64_t kFarBytes = 16384;  // fetched ahead into L2
constexpr int64_t kNearBytes = 3072;  // and from there into L1

struct Workspace {
  alignas(64) float weights[kDenseGroupPanels * kDenseBlockColumns * 16];
  alignas(64) float sums[kBlockRows * kDenseGroupPanels * 16];
};

/// Two columns of a panel.
struct ColumnPair {
  F16 even, odd;
};

inline ColumnPair load_pair(const std::uint32_t* words) {
#if defined(NYBBLE_ISA_AVX512)
  const __m512i raw = _mm512_loadu_si512(words);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))}, {_mm512_castsi512_ps(_mm512_and_si512(raw, high))}};
#elif defined(NYBBLE_ISA_AVX2)
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 8));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(low, mask)), _mm256_castsi256_ps(_mm256_and_si256(high, mask))}};
#else
  I4 raw[4];
  std::memcpy(raw, words, sizeof(raw));
  return {lanewise([&](int i) { return (F4)(raw[i] << 16); }),
          lanewise([&](int i) { return (F4)(raw[i] & static_cast<std::int32_t>(0xffff0000U)); })};
#endif
}

/// Weights of a group of `Panels` panels in memory, from some pair of columns on.
template <ElementType Type, int Panels>
struct Stored {
  static constexpr int64_t kPairBytes = Panels * (Type == ElementType::kFloat32 ? 128 : 64);
  const std::uint8_t* data;

  ColumnPair load(int64_t pair, int panel) const {
    const std::uint8_t* at = data + pair * kPairBytes;
    if constexpr (Type == ElementType::kBfloat16) {
      return load_pair(reinterpret_cast<const std::uint32_t*>(at) + panel * 16);
    } else if constexpr (Type == ElementType::kFloat16) {
      const auto* halves = reinterpret_cast<const std::uint16_t*>(at) + panel * 16;
      return {load_float16(halves), load_float16(halves + Panels * 16)};
    } else {
      const auto* floats = reinterpret_cast<const float*>(at) + panel * 16;
      return {NYBBLE_ISA::load(floats), NYBBLE_ISA::load(floats + Panels * 16)};
    }
  }
  void prefetch(int64_t pair) const {
    for (int64_t line = 0; line < kPairBytes; line += 64) {
      __builtin_prefetch(data + pair * kPairBytes + kNearBytes + line, 0, 3);
    }
  }
};

/// The same as an earlier tile of rows left them in L1.
template <int Panels>
struct Kept {
  const float* data;

  ColumnPair load(int64_t pair, int panel) const {
    const float* floats = data + (2 * pair * Panels + panel) * 16;
    return {NYBBLE_ISA::load(floats), NYBBLE_ISA::load(floats + Panels * 16)};
  }
  void prefetch(int64_t) const {}
};

/// One block of columns for a tile of rows.
struct Tile {
  const float* x;  // [rows][kDenseBlockColumns]
  int64_t num_pairs;
  float* sums;                // [rows][panels][16]
  float* kept;                // [columns][panels][16]
  const std::uint8_t* ahead;  // what is fetched into L2
};

/// How a tile fetches into L2: `num_lines` cache lines at every `every_pairs`-th pair, `pair_lines` on for each pair.
struct Fetch {
  int num_lines;
  int every_pairs;
  int pair_lines;
};

/// Adds a block's products to the sums. With `Keep` the weights are left behind as float32.
template <int Rows, int Panels, bool Keep, Fetch F, typename Source>
[[gnu::noinline]] void multiply(Source source, const Tile& tile) {
  const float* x = tile.x;
  F16 acc[Rows][Panels];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < Panels; ++p) acc[r][p] = splat(0.0F);
  }
  for (int64_t pair = 0; pair < tile.num_pairs; ++pair) {
    source.prefetch(pair);
    if (pair % F.every_pairs == 0) {
      for (int line = 0; line < F.num_lines; ++line) {
        __builtin_prefetch(tile.ahead + (pair * F.pair_lines + line) * 64, 0, 2);
      }
    }
    ColumnPair w[Panels];
#pragma GCC unroll 2
    for (int p = 0; p < Panels; ++p) {
      w[p] = source.load(pair, p);
      if (Keep) {
        store(tile.kept + (2 * pair * Panels + p) * 16, w[p].even);
        store(tile.kept + ((2 * pair + 1) * Panels + p) * 16, w[p].odd);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const F16 value = splat(x[r * kDenseBlockColumns + 2 * pair]);
#pragma GCC unroll 2
      for (int p = 0; p < Panels; ++p) acc[r][p] = fma(w[p].even, value, acc[r][p]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const F16 value = splat(x[r * kDenseBlockColumns + 2 * pair + 1]);
#pragma GCC unroll 2
      for (int p = 0; p < Panels; ++p) acc[r][p] = fma(w[p].odd, value, acc[r][p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < Panels; ++p) {
      float* sum = tile.sums + (r * Panels + p) * 16;
      store(sum, load(sum) + acc[r][p]);
    }
  }
}

/// One block of columns of one group of panels.
struct Block {
  const std::uint8_t* weights;
  const float* x;  // [rows][kDenseBlockColumns]
  int64_t num_pairs;
};

/// The `index`-th of `num_tiles` tiles: `num_rows` rows from `row` on.
template <ElementType Type, int Panels, int Rows>
void run_tile(const Block& block, Workspace& workspace, int64_t row, int64_t num_rows, int64_t index,
              int64_t num_tiles) {
  if constexpr (Rows > 1) {
    if (num_rows < Rows) return run_tile<Type, Panels, Rows - 1>(block, workspace, row, num_rows, index, num_tiles);
  }
  constexpr int kLines = static_cast<int>(Stored<Type, Panels>::kPairBytes / 64);
  constexpr int kHalf = (kLines + 1) / 2;
  // Where multiplying takes as long as reading, every fetch holds up the products: one line in four, the processor's
  // own prefetching brings the others.
  constexpr Fetch kAll = Rows > kMemoryBoundRows ? Fetch{1, 2, kLines} : Fetch{kLines, 1, kLines};
  constexpr Fetch kShare{kHalf, 1, kHalf};
  const Stored<Type, Panels> stored{block.weights};
  Tile tile{block.x + row * kDenseBlockColumns, block.num_pairs, workspace.sums + row * Panels * 16, workspace.weights,
            block.weights + kFarBytes};
  if (num_tiles == 1) {
    multiply<Rows, Panels, false, kAll>(stored, tile);
  } else if (index == 0) {
    multiply<Rows, Panels, true, kShare>(stored, tile);
  } else {
    // The second tile fetches the other half: memory would stand idle meanwhile. Later ones fetch what is there.
    tile.ahead = index == 1 ? tile.ahead + block.num_pairs * kHalf * 64 : block.weights;
    multiply<Rows, Panels, false, kShare>(Kept<Panels>{workspace.weights}, tile);
  }
}

/// `num_rows` rows from `row` on, all outputs of a group.
template <ElementType Type, int Panels>
void run_rows(const DenseArgs& args, int64_t first_panel, int64_t row, int64_t num_rows, Workspace& workspace) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  const std::uint8_t* weights = args.weight.data + first_panel * dense_panel_bytes(args.weight);
  std::memset(workspace.sums, 0, static_cast<std::size_t>(num_rows) * Panels * 64);
  for (int64_t k = 0; k < num_columns; k += kDenseBlockColumns) {
    const Block block{weights + k / 2 * Stored<Type, Panels>::kPairBytes,
                      args.x + k * args.num_rows + row * kDenseBlockColumns,
                      (min64(kDenseBlockColumns, num_columns - k) + 1) / 2};
    int64_t first = 0;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {  // of equal size, as far as possible
      const int64_t rows = (num_rows - first + num_tiles - tile - 1) / (num_tiles - tile);
      run_tile<Type, Panels, kTileRows>(block, workspace, first, rows, tile, num_tiles);
      first += rows;
    }
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    float* out = args.out + (row + r) * args.weight.num_rows;
    for (int p = 0; p < Panels; ++p) {
      const int64_t output = (first_panel + p) * 16;
      store_partial(out + output, load(workspace.sums + (r * Panels + p) * 16),
                    min64(16, args.weight.num_rows - output));
    }
  }
}

template <ElementType Type>
void run_groups(const DenseArgs& args, int64_t group_begin, int64_t group_end) {
  Workspace workspace;
  const int64_t num_panels = (args.weight.num_rows + 15) / 16;
  for (int64_t group = group_begin; group < group_end; ++group) {
    const int64_t panel = group * kDenseGroupPanels;
    for (int64_t row = 0; row < args.num_rows; row += kBlockRows) {
      const int64_t rows = min64(kBlockRows, args.num_rows - row);
      if (num_panels - panel >= kDenseGroupPanels) {
        run_rows<Type, kDenseGroupPanels>(args, panel, row, rows, workspace);
      } else {
        run_rows<Type, 1>(args, panel, row, rows, workspace);
      }
    }
  }
}

}  // namespace

void dense_linear(const DenseArgs& args, int64_t group_begin, int64_t group_end) {
  switch (args.weight.element_type) {
    case ElementType::kBfloat16:
      return run_groups<ElementType::kBfloat16>(args, group_begin, group_end);
    case ElementType::kFloat16:
      return run_groups<ElementType::kFloat16>(args, group_begin, group_end);
    default:
      return run_groups<ElementType::kFloat32>(args, group_begin, group_end);
  }
}

}  // namespace nybble::NYBBLE_ISA
