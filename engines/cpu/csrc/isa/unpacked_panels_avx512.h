#pragma once
// A superblock of one or two panels of MXFP4 weights, unpacked for tiles to shifted codes as signed bytes: in pieces,
// between products of tiles, and over the superblock before, whose lines L1 still has.

#include "shifted_codes_avx512.h"

namespace nybble::NYBBLE_ISA {

constexpr int kVectors = kSuperblockColumns / 4;  // of 4 columns x 16 outputs

/// A superblock's place, scales and size.
template <int Panels>
struct PanelSuperblock {
  PanelSource sources[Panels];
  F16 quarters[Panels];
  BlockShift<true> shifts[kSharedBlocks][Panels];
  int num_blocks;
  bool shared;  // the exponents of all panels are; otherwise there is nothing to unpack

  void begin(const Fp4View& weight, const int64_t (&panels)[Panels], int64_t superblock) {
    num_blocks = static_cast<int>(superblock_columns(weight.num_columns, superblock) / 32);
    shared = true;
    for (int p = 0; p < Panels; ++p) {
      sources[p] = panel_source(weight, panels[p], superblock);
      alignas(kSharedScaleBytes) std::uint8_t own[kSharedScaleBytes];
      const std::uint8_t* scales = shared_scales(sources[p], num_blocks, own);
      shared = shared && scales != nullptr;
      if (!shared) continue;
      quarters[p] = shared_quarters(scales);
      BlockShifts<true, 0> block_shifts(scales);
      for (int b = 0; b < kSharedBlocks; ++b) shifts[b][p] = block_shifts.next();
    }
  }
};

template <int Panels>
class UnpackedPanels {
 public:
  /// Vectors of columns `column` on. Columns past the last keep whatever is there: the activations have zeros.
  const std::uint8_t* vectors(int column) const { return codes_[column / 4][0]; }

  /// One block of one panel, if there is such a block.
  template <int Block, int P>
  __attribute__((always_inline)) void unpack(const PanelSuperblock<Panels>& superblock) {
    if (Block >= superblock.num_blocks) return;
    const CodeShifter<true, 0> shifter;  // processors with tiles have VBMI
    const BlockShift<true> shift = superblock.shifts[Block][P];
    const std::uint8_t* codes = superblock.sources[P].codes + Block * 256;
    std::uint8_t (*target)[Panels][64] = codes_ + Block * 8;
    NYBBLE_UNROLL for (int line = 0; line < 4; ++line) {
      const __m512i raw = _mm512_load_si512(codes + line * 64);
      _mm512_store_si512(target[2 * line][P], shifter.low(raw, shift));
      _mm512_store_si512(target[2 * line + 1][P], shifter.high(raw, shift));
    }
  }

  /// Blocks 0 and 1 of all panels.
  __attribute__((noinline)) void unpack_first_half(const PanelSuperblock<Panels>& superblock) {
    unpack<0, 0>(superblock);
    unpack<1, 0>(superblock);
    if constexpr (Panels == 2) {
      unpack<0, 1>(superblock);
      unpack<1, 1>(superblock);
    }
  }

 private:
  alignas(64) std::uint8_t codes_[kVectors][Panels][64];
};

}  // namespace nybble::NYBBLE_ISA
