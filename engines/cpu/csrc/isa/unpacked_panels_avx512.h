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

  void begin(const Fp4View& weight, int64_t first_panel, int64_t superblock) {
    num_blocks = static_cast<int>(superblock_columns(weight.num_columns, superblock) / 32);
    shared = true;
    for (int p = 0; p < Panels; ++p) {
      sources[p] = panel_source(weight, first_panel + p, superblock);
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

/// An instruction: see prefetch_line().
inline void prefetch_to_l2(const std::uint8_t* line) { asm volatile("prefetcht1 %a0" : : "p"(line)); }

/// Codes of a later superblock of two panels, fetched into L2 line by line: many at once would keep activations
/// waiting.
struct UpcomingWeights {
  static constexpr int kLines = kSuperblockColumns * 8 / 64;

  const std::uint8_t* first;
  const std::uint8_t* second;
  int next = 0;

  __attribute__((always_inline)) void fetch_line() {
    if (next == kLines) return;
    prefetch_to_l2(first + next * 64);
    prefetch_to_l2(second + next * 64);
    ++next;
  }
};

template <int Panels>
class UnpackedPanels {
 public:
  static constexpr int kPieces = kSharedBlocks * Panels;
  static constexpr int kVectorBytes = Panels * 64;

  /// Vectors of columns `column` on. Columns past the last keep whatever is there: the activations have zeros.
  const std::uint8_t* vectors(int column) const { return codes_[column / 4][0]; }

  /// What the next pieces are of.
  void begin(const PanelSuperblock<Panels>& superblock) {
    superblock_ = &superblock;
    next_ = 0;
    end_ = superblock.shared ? static_cast<unsigned>(superblock.num_blocks) * Panels : 0;
  }

  /// One block of one panel, or nothing if all are done.
  __attribute__((always_inline)) void unpack_piece() {
    if (next_ == end_) return;
    const unsigned block = next_ / Panels, p = next_ % Panels;
    ++next_;
    const CodeShifter<true, 0> shifter;  // processors with tiles have VBMI
    const BlockShift<true> shift = superblock_->shifts[block][p];
    const std::uint8_t* codes = superblock_->sources[p].codes + block * 256;
    std::uint8_t (*target)[Panels][64] = codes_ + block * 8;
    NYBBLE_UNROLL for (int line = 0; line < 4; ++line) {
      const __m512i raw = _mm512_load_si512(codes + line * 64);
      _mm512_store_si512(target[2 * line][p], shifter.low(raw, shift));
      _mm512_store_si512(target[2 * line + 1][p], shifter.high(raw, shift));
    }
  }

  /// Up to and without piece `end`.
  __attribute__((noinline)) void unpack_until(unsigned end) {
    while (next_ < end && next_ != end_) unpack_piece();
  }

 private:
  alignas(64) std::uint8_t codes_[kVectors][Panels][64];
  const PanelSuperblock<Panels>* superblock_ = nullptr;
  unsigned next_ = 0, end_ = 0;
};

}  // namespace nybble::NYBBLE_ISA
