#pragma once
// NVFP4 weights times bfloat16 activations on AMX tiles, for many rows. Arithmetic and layout: bfloat16_rows.h.
//
// Loops, from the outside: blocks of rows; chunks of columns whose activations stay in L2 while all panels pass; pairs
// of panels; ranges of columns whose unpacked weights stay in L1; pairs of row tiles; steps of 32 columns. Sums of a
// pair of panels are kept as tiles between ranges and in `out` between chunks, in float32 both times: neither changes a
// bit.

#include "amx_tiles.h"
#include "bfloat16_weights_avx512.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kRangeSteps = 8;            // 16 KiB of weights and as much of activations: two thirds of L1
constexpr int64_t kBlockTiles = 32;       // of rows that share unpacked weights
constexpr int64_t kChunkBytes = 1 << 20;  // of activations: half of L2

/// Sums [row tile a][panel p] in tmm(2a + p), activations in tmm4 and 5, weights in tmm6 and 7.
template <class Backend, int RowTiles, int Panels>
struct Bfloat16Tiles {
  template <class Function>
  static void for_sums(float (*sums)[16][16], const Function& function) {
    function.template operator()<0>(sums[0]);
    if constexpr (Panels == 2) function.template operator()<1>(sums[1]);
    if constexpr (RowTiles == 2) function.template operator()<2>(sums[Panels]);
    if constexpr (RowTiles == 2 && Panels == 2) function.template operator()<3>(sums[Panels + 1]);
  }

  static void zero(float (*sums)[16][16]) {
    for_sums(sums, []<int Tile>(float (*)[16]) { Backend::template zero<Tile>(); });
  }
  static void load(float (*sums)[16][16]) {
    for_sums(sums, []<int Tile>(float (*tile)[16]) { Backend::template load<Tile>(tile, 64); });
  }
  static void store(float (*sums)[16][16]) {
    for_sums(sums, []<int Tile>(float (*tile)[16]) { Backend::template store<Tile>(tile, 64); });
  }

  /// 32 columns.
  static void multiply(const std::uint16_t* first, const std::uint16_t* second, std::uint16_t (*weights)[16][32]) {
    Backend::template load<6>(weights[0], 64);
    Backend::template load<4>(first, 64);
    Backend::template dot_bfloat16<0, 4, 6>();
    if constexpr (Panels == 2) {
      Backend::template load<7>(weights[1], 64);
      Backend::template dot_bfloat16<1, 4, 7>();
    }
    if constexpr (RowTiles == 2) {
      Backend::template load<5>(second, 64);
      Backend::template dot_bfloat16<2, 5, 6>();
      if constexpr (Panels == 2) Backend::template dot_bfloat16<3, 5, 7>();
    }
  }
};

/// A chunk of columns for one or two panels and a block of rows.
struct ChunkSpan {
  int64_t tile_begin, tile_end;  // of rows
  int64_t step_begin, step_end;
};

template <class Backend, int Panels>
class TilePanels {
 public:
  TilePanels(const Bfloat16Args& args, int64_t first_panel) : args_(args), first_panel_(first_panel) {}

  void run(const ChunkSpan& span) {
    if (span.step_begin != 0) read_sums(span);
    for (int64_t step = span.step_begin; step < span.step_end; step += kRangeSteps) {
      const int64_t end = min64(span.step_end, step + kRangeSteps);
      unpack_range(step, end);
      int64_t tile = span.tile_begin;
      for (; tile + 2 <= span.tile_end; tile += 2) run_range<2>(tile, span.tile_begin, step, end);
      if (tile < span.tile_end) run_range<1>(tile, span.tile_begin, step, end);
    }
    write_sums(span);
  }

 private:
  int64_t total_steps() const { return num_steps(args_.weight.num_columns); }

  void unpack_range(int64_t step_begin, int64_t step_end) {
    const Fp4View& weight = args_.weight;
    for (int p = 0; p < Panels; ++p) {
      const std::uint8_t* codes = weight.data + static_cast<std::size_t>(first_panel_ + p) * weight.panel_bytes;
      const std::uint8_t* scales = codes + weight.scale_offset;
      for (int64_t step = step_begin; step < step_end; ++step) {
        const bool second = step * kStepColumns + 16 < weight.num_columns;
        unpack_tile(codes + step * (kStepColumns * 8), scales + step * kStepColumns, second,
                    weights_[step - step_begin][p]);
      }
    }
  }

  template <int RowTiles>
  void run_range(int64_t tile, int64_t first_tile, int64_t step_begin, int64_t step_end) {
    using Tiles = Bfloat16Tiles<Backend, RowTiles, Panels>;
    float (*sums)[16][16] = sums_ + (tile - first_tile) * Panels;
    if (step_begin == 0) {
      Tiles::zero(sums);
    } else {
      Tiles::load(sums);
    }
    const std::uint16_t* first = args_.rows.tiles + tile * total_steps() * kTileElements;
    const std::uint16_t* second = first + total_steps() * kTileElements;
    for (int64_t step = step_begin; step < step_end; ++step) {
      Tiles::multiply(first + step * kTileElements, second + step * kTileElements, weights_[step - step_begin]);
    }
    Tiles::store(sums);
  }

  float* out(int64_t row, int p) const {
    return args_.out + row * args_.weight.num_rows + args_.weight.panels[first_panel_ + p].first_output;
  }

  template <class Function>
  void for_rows(const ChunkSpan& span, const Function& function) {
    const int64_t row_end = min64(args_.num_rows, span.tile_end * kTileRows);
    for (int64_t row = span.tile_begin * kTileRows; row < row_end; ++row) {
      const int64_t tile = row / kTileRows - span.tile_begin;
      for (int p = 0; p < Panels; ++p) function(row, p, sums_[tile * Panels + p][row % kTileRows]);
    }
  }

  void read_sums(const ChunkSpan& span) {
    for_rows(span, [&](int64_t row, int p, float* sums) {
      const __mmask16 lanes = lane_mask(args_.weight.panels[first_panel_ + p]);
      _mm512_store_ps(sums, _mm512_maskz_loadu_ps(lanes, out(row, p)));
    });
  }

  void write_sums(const ChunkSpan& span) {
    const bool last = span.step_end == total_steps();
    F16 factors[Panels];
    for (int p = 0; p < Panels; ++p) {
      const F16 factor = args_.quantized ? output_factor<1>(args_.weight, first_panel_ + p)
                                         : output_factor<2>(args_.weight, first_panel_ + p);
      factors[p] = last ? factor : splat(1.0F);
    }
    for_rows(span, [&](int64_t row, int p, const float* sums) {
      store_partial(out(row, p), nybble::NYBBLE_ISA::load(sums) * factors[p],
                    args_.weight.panels[first_panel_ + p].num_lanes);
    });
  }

  const Bfloat16Args& args_;
  int64_t first_panel_;
  alignas(64) std::uint16_t weights_[kRangeSteps][Panels][16][32];
  alignas(64) float sums_[kBlockTiles * Panels][16][16];
};

template <class Backend>
void run_bfloat16(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t num_tiles = (args.num_rows + kTileRows - 1) / kTileRows;
  const int64_t steps = num_steps(args.weight.num_columns);
  for (int64_t tile = 0; tile < num_tiles; tile += kBlockTiles) {
    const int64_t tile_end = min64(num_tiles, tile + kBlockTiles);
    const int64_t fitting = kChunkBytes / ((tile_end - tile) * kTileElements * 2);
    const int64_t chunk = max64(kRangeSteps, fitting / kRangeSteps * kRangeSteps);
    for (int64_t step = 0; step < steps; step += chunk) {
      const ChunkSpan span{tile, tile_end, step, min64(steps, step + chunk)};
      int64_t panel = panel_begin;
      for (; panel + 2 <= panel_end; panel += 2) TilePanels<Backend, 2>(args, panel).run(span);
      if (panel < panel_end) TilePanels<Backend, 1>(args, panel).run(span);
    }
  }
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
