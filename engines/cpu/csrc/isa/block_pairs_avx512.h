#pragma once
// A tile of up to 12 rows (also of two parts each) times one panel of NVFP4 weights, for a superblock: pairs of blocks
// are summed and join the outputs' sums (linear_w4a4.cpp). Weights go from memory through registers into the products.
//
// W4A4: a block's integer sum starts at the bits of the float kMagic, so that it is a float without a conversion, and
// one fused multiply-add takes kMagic away and multiplies by the weight's scale:
//   fma(kMagic + sum, quarter, -kMagic * quarter) = sum * quarter,    exact: 12 bits times 4, and kMagic has 2
// The activation's scale multiplies the result, exactly too; a pair is rounded once.

#include "by_block_avx512.h"
#include "unroll.h"

namespace nybble::NYBBLE_ISA {

/// Quarters of two blocks' E4M3 scales, [block][16] bytes below 127. Their bits, seven places up, are those of a
/// float16 2^-8 as large.
inline void e4m3_quarters(const std::uint8_t* scales, F16 (&quarters)[2]) {
  const __m512i bits =
      _mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales))), 7);
  quarters[0] = F16{_mm512_cvtph_ps(_mm512_castsi512_si256(bits))} * splat(0x1p6F);
  quarters[1] = F16{_mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1))} * splat(0x1p6F);
}

/// What a tile reads of its rows: [row][Parts][128] codes and the next superblock's, which are fetched; [row][8] scales
/// and biases.
struct PairRows {
  const std::int8_t* codes;
  const std::int8_t* next_codes;
  const float* scales;
  const std::int32_t* biases;
};

constexpr int kBlocks16 = kSuperblockColumns / 16;

/// Integer sums of one block, biases included. Of two parts the high one is summed first and moved up.
template <bool Vbmi, int Rows, int Parts>
inline __attribute__((always_inline)) void block_sums(const std::uint8_t* packed, const PairRows& rows, int block,
                                                      const CodeUnpacker<Vbmi>& unpacker, __m512i (&sums)[Rows]) {
  constexpr int kLines = Rows * Parts >= 10 ? (Rows * Parts + 7) / 8 : 0;
  __m512i weights[4];
  NYBBLE_UNROLL for (int step = 0; step < 2; ++step) {
    const int offset = (block * 2 + step) * 64;
    prefetch_ahead(kFetchNvfp4, packed + offset);
    NYBBLE_UNROLL for (int i = 0; i < kLines; ++i) prefetch_line(rows.next_codes + offset * kLines + i * 64);
    const __m512i raw = _mm512_load_si512(packed + offset);
    weights[step * 2] = unpacker.low(raw);
    weights[step * 2 + 1] = unpacker.high(raw);
  }
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    sums[r] = Parts == 1 ? _mm512_set1_epi32(rows.biases[r * kBlocks16 + block]) : _mm512_setzero_si512();
  }
  NYBBLE_UNROLL for (int part = 0; part < Parts; ++part) {
    NYBBLE_UNROLL for (int r = 0; part == 1 && r < Rows; ++r) {
      sums[r] = _mm512_add_epi32(_mm512_slli_epi32(sums[r], 8), _mm512_set1_epi32(rows.biases[r * kBlocks16 + block]));
    }
    NYBBLE_UNROLL for (int i = 0; i < 4; ++i) {
      NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
        dot_product(sums[r], weights[i], rows.codes + (r * Parts + part) * kSuperblockColumns + block * 16 + i * 4);
      }
    }
  }
}

/// What a block contributes, added to `runs` unless it is the first of its pair.
template <bool Vbmi, int Rows, int Parts, bool First>
inline __attribute__((always_inline)) void add_block(const std::uint8_t* packed, const PairRows& rows, int block,
                                                     const CodeUnpacker<Vbmi>& unpacker, F16 quarter,
                                                     F16 (&runs)[Rows]) {
  __m512i sums[Rows];
  block_sums<Vbmi, Rows, Parts>(packed, rows, block, unpacker, sums);
  const F16 minus_magic = quarter * splat(-kMagic);
  NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) {
    F16 scale = splat(rows.scales[r * kBlocks16 + block]);
    F16 sum;
    if constexpr (Parts == 1) {
      sum = fma(F16{_mm512_castsi512_ps(sums[r])}, quarter, minus_magic);
    } else {  // the sum has up to 24 bits: defined as fused. No product of the scales overflows: 112 times 2^115 at
              // most.
      sum = F16{_mm512_cvtepi32_ps(sums[r])};
      scale = quarter * scale;
    }
    runs[r] = First ? sum * scale : fma(sum, scale, runs[r]);
  }
}

/// sums[row] += one superblock.
template <bool Vbmi, int Rows, int Parts>
__attribute__((noinline)) void add_block_pairs(const std::uint8_t* packed, const std::uint8_t* scales, int num_blocks,
                                               const PairRows& rows, F16* sums) {
  const CodeUnpacker<Vbmi> unpacker;
  for (int block = 0; block < num_blocks; block += 2) {
    F16 quarters[2], runs[Rows];
    e4m3_quarters(scales + block * 16, quarters);
    add_block<Vbmi, Rows, Parts, true>(packed, rows, block, unpacker, quarters[0], runs);
    if (block + 1 < num_blocks) {
      add_block<Vbmi, Rows, Parts, false>(packed, rows, block + 1, unpacker, quarters[1], runs);
    }
    NYBBLE_UNROLL for (int r = 0; r < Rows; ++r) sums[r] = sums[r] + runs[r];
  }
}

/// The sums of rows [first_row, first_row + Rows) and a panel.
template <bool Vbmi, int Rows, int Parts>
void run_paired(const IntegerArgs& args, int64_t first_row, int64_t panel, F16 (&sums)[Rows]) {
  clear_sums(sums, Rows);
  for_each_superblock(args.weight, panel, [&](const PanelSource& source, int64_t superblock, int num_blocks) {
    if (!args.weight.e4m3_scales || irregular_rows(args, first_row, Rows, superblock) != 0) {
      return add_by_block<Parts, 16>(args, first_row, all_rows(Rows), source, superblock, num_blocks, sums);
    }
    const int64_t slot = superblock * args.rows.stride + first_row;
    const std::int8_t* codes = args.rows.codes + slot * Parts * kSuperblockColumns;
    const PairRows rows{codes, codes + args.rows.stride * Parts * kSuperblockColumns,
                        args.rows.block_scales + slot * kBlocks16, args.rows.block_biases + slot * kBlocks16};
    add_block_pairs<Vbmi, Rows, Parts>(source.codes, source.scales, num_blocks, rows, sums);
  });
}

}  // namespace nybble::NYBBLE_ISA
