#pragma once
// A tile of rows over a panel, superblock after superblock: what the MXFP4 and the NVFP4 kernels share.

#include "by_block_avx512.h"

namespace nybble::NYBBLE_ISA {

/// A superblock of a tile of rows and a panel.
struct TileSuperblock {
  PanelSource source;
  int64_t superblock;
  int num_blocks;
  int64_t slot;                   // of the first row
  const std::int8_t* codes;       // [Rows][Parts][128]
  const std::int8_t* next_codes;  // of the next superblock
};

/// The outputs of rows [first_row, first_row + Rows) and a panel. `add(tile, sums)` adds a superblock to the rows' sums
/// and returns the rows that it left out, by bits: they are added block by block.
template <int Rows, int Parts, int Group, typename Add>
inline void run_tile_panel(const IntegerArgs& args, int64_t first_row, int64_t panel, const Add& add) {
  const Fp4View& weight = args.weight;
  F16 sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r] = splat(0.0F);
  TileSuperblock tile;
  tile.source = panel_source(weight, panel, 0);
  const int scale_bytes = superblock_scale_bytes(Group, tile.source.panel->shared_exponents);
  const int64_t num_superblocks = (weight.num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
  for (tile.superblock = 0; tile.superblock < num_superblocks; ++tile.superblock) {
    tile.num_blocks = static_cast<int>(superblock_columns(weight.num_columns, tile.superblock) / Group);
    tile.slot = tile.superblock * args.rows.stride + first_row;
    tile.codes = args.rows.codes + tile.slot * Parts * kSuperblockColumns;
    tile.next_codes = tile.codes + args.rows.stride * Parts * kSuperblockColumns;
    prefetch_scales(weight, tile.source, tile.superblock);
    const std::uint32_t left = add(tile, sums);
    if (left != 0) {
      add_by_block<Parts, Group>(args, first_row, left, tile.source, tile.superblock, tile.num_blocks, sums);
    }
    tile.source.codes += kSuperblockColumns * 8;
    tile.source.scales += scale_bytes;
  }
  store_outputs<Rows, Parts>(args, first_row, panel, sums);
}

}  // namespace nybble::NYBBLE_ISA
