// NVFP4 weights times activations in bfloat16 by dot products of vectors (AVX512-BF16), W4A16 with more than a few
// rows: where `vdpbf16ps` runs at half the rate of an int8 product, as on Zen 4 and 5, it does the work of two of those
// and leaves nothing to scale. The bits are those of the tiles and, for the reasons given in bfloat16_rows.h, of the
// integer kernel: a sum over one block is exact, two blocks are added, then joined to the output's sum.
//
// Rows lie superblock after superblock, [superblock][row][128]. Each eight columns are in the order in which shifted
// words of packed codes hold them: 0 2, 4 6, 1 3, 5 7.

#include "bfloat16_weights_avx512.h"
#include "row_tiles.h"
#include "silu.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kDotRows = 12;  // of two sums each

typedef std::int32_t TwoValues __attribute__((may_alias));

/// acc += two columns of each output times two values, the same for all. An instruction: these sources are compiled
/// without AVX512-BF16.
inline void dot_bfloat16(__m512& acc, __m512i weights, const std::uint16_t* values) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(*reinterpret_cast<const TwoValues*>(values)));
}

/// A superblock of a tile of rows, [row][128], and what is fetched into L1 meanwhile: the next one's.
struct DotRows {
  const std::uint16_t* values;
  const std::uint16_t* next;
};

/// sums[row] += one or two blocks of 16 columns. Two take turns: a product takes six cycles, and 24 of them, in twelve,
/// lie between two that are added to one sum.
template <int Rows, int Blocks>
inline __attribute__((always_inline)) void add_blocks(const PanelSource& source, int block, const DotRows& rows,
                                                      F16* sums) {
  // In rows of 256 bytes two blocks, in the order of their steps, fetch a quarter of the next superblock.
  constexpr int kLines = Rows > 4 ? Rows : 0;
  __m512 acc[Blocks][Rows];
  ScaleWords words[Blocks];
  NYBBLE_UNROLL for (int b = 0; b < Blocks; ++b) {
    const auto* scales = reinterpret_cast<const __m128i*>(source.scales + (block + b) * 16);
    words[b] = scale_words(_mm_loadu_si128(scales), _mm_loadu_si128(scales));
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) acc[b][r] = _mm512_setzero_ps();
  }
  const std::uint16_t* next = rows.next + block * (kLines * 16);
  NYBBLE_UNROLL for (int step = 0; step < 8; ++step) {
    NYBBLE_UNROLL for (int b = 0; b < Blocks; ++b) {
      const std::uint8_t* line = source.codes + (block + b) * 128 + step / 4 * 64;
      if (step % 4 == 0) prefetch_ahead(kFetchNvfp4, line);
      if (step * 2 + b < kLines) prefetch_line(next + (step * 2 + b) * 32);
      const __m512i raw = _mm512_load_si512(line);
      const __m512i weights = weight_pairs(step % 4 == 0 ? raw : _mm512_srli_epi16(raw, step % 4 * 4), words[b]);
      const std::uint16_t* x = rows.values + (block + b) * 16 + step * 2;
      NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) dot_bfloat16(acc[b][r], weights, x + r * kSuperblockColumns);
    }
  }
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    F16 run{acc[0][r]};
    if (Blocks == 2) run = run + F16{acc[Blocks - 1][r]};
    sums[r] = sums[r] + run;
  }
}

/// sums[row] += a superblock.
template <int Rows>
__attribute__((noinline)) void add_superblock(const PanelSource& source, int num_blocks, const DotRows& rows,
                                              F16* sums) {
  int block = 0;
  for (; block + 2 <= num_blocks; block += 2) add_blocks<Rows, 2>(source, block, rows, sums);
  if (block < num_blocks) add_blocks<Rows, 1>(source, block, rows, sums);
}

/// Rows [first_row, first_row + Rows) of a panel.
template <int Rows>
void run_panel(const Bfloat16Args& args, int64_t first_row, int64_t panel, F16* sums) {
  clear_sums(sums, Rows);
  for_each_superblock(args.weight, panel, [&](const PanelSource& source, int64_t superblock, int num_blocks) {
    const std::uint16_t* values = args.rows.tiles + (superblock * args.rows.stride + first_row) * kSuperblockColumns;
    add_superblock<Rows>(source, num_blocks, {values, values + args.rows.stride * kSuperblockColumns}, sums);
  });
  const F16 factor = output_factor<2>(args.weight, panel);
  for (int r = 0; r < Rows; ++r) sums[r] = sums[r] * factor;
}

template <int Rows>
void run_rows(const Bfloat16Args& args, int64_t first_row, int64_t num_rows, int64_t panel) {
  if constexpr (Rows > 1) {
    if (num_rows < Rows) return run_rows<Rows - 1>(args, first_row, num_rows, panel);
  }
  F16 sums[Rows], others[Rows];
  run_panel<Rows>(args, first_row, panel, sums);
  if (args.gated) run_panel<Rows>(args, first_row, gated_panel(args.weight, panel), others);
  const int64_t width = args.gated ? args.weight.num_rows / 2 : args.weight.num_rows;
  const Fp4Panel& info = args.weight.panels[panel];
  for (int r = 0; r < Rows; ++r) {
    const F16 values = args.gated ? silu_mul(sums[r], others[r]) : sums[r];
    store_partial(args.out + (first_row + r) * width + info.first_output, values, info.num_lanes);
  }
}

}  // namespace

void dot_rows_w4a16(const Fp4F32Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end) {
  const __m256i order = _mm256_setr_epi16(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (int64_t row = row_begin; row < row_end; ++row) {
    bool fits = true;
    for (int64_t column = 0; column < args.weight.num_columns; column += 16) {
      const BlockIntegers block = block_integers(args.x + row * args.weight.num_columns + column);
      fits = fits && block.moderate;
      const __m512i values = _mm512_castps_si512(integer_values(block));
      const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(values, 16));
      const int64_t slot = column / kSuperblockColumns * rows.stride + row;
      std::uint16_t* out = rows.tiles + slot * kSuperblockColumns + column % kSuperblockColumns;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutexvar_epi16(order, words));
    }
    rows.fits[row] = fits;
  }
}

void fp4_linear_bfloat16_dots(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float*) {
  const int64_t panel_bytes = static_cast<int64_t>(args.weight.panel_bytes) * (args.gated ? 2 : 1);
  for_each_tile(args.num_rows, kDotRows, panel_bytes, panel_begin, panel_end,
                [&](int64_t row, int64_t num_rows, int64_t panel, int64_t end) {
                  for (; panel < end; ++panel) run_rows<kDotRows>(args, row, num_rows, panel);
                });
}

}  // namespace nybble::NYBBLE_ISA
