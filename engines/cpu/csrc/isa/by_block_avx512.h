#pragma once
// A superblock block by block, for whatever the faster kernels leave out: exponents too far apart to be shared, scales
// that are no E4M3 values. Every block's sum is scaled as the formula in linear_w4a4.cpp says.

#include "integer_weights_avx512.h"

namespace nybble::NYBBLE_ISA {

constexpr int kByBlockRows = 8;  // of one part each, whose sums and biases stay in registers

template <int Rows, int Parts, int Group>
class ByBlock {
 public:
  /// These rows of a superblock; one may be named twice.
  ByBlock(const IntegerArgs& args, const int64_t (&rows)[Rows], int64_t superblock) : args_(args) {
    const int64_t column = superblock * kSuperblockColumns;
    for (int r = 0; r < Rows; ++r) {
      slots_[r] = superblock * args.rows.stride + rows[r];
      // An MXFP4 row's codes in `rows` are shifted (W4A4): the caller's are not.
      codes_[r] = Parts == 1 ? args.block_codes + rows[r] * args.weight.num_columns + column
                             : args.rows.codes + slots_[r] * Parts * kSuperblockColumns;
    }
  }

  /// Adds the superblock to `sums` [Rows].
  void add(const PanelSource& source, int num_blocks, F16* sums) const {
    if (Group == 16 && Parts == 2 && args_.weight.e4m3_scales) return add_blocks<true>(source, num_blocks, sums);
    add_blocks<false>(source, num_blocks, sums);
  }

 private:
  template <bool Fused>
  void add_blocks(const PanelSource& source, int num_blocks, F16* sums) const {
    F16 runs[Rows];
    for (int b = 0; b < num_blocks; ++b) {
      __m512i products[Rows];
      multiply(source.codes + b * (Group * 8), b, products);
      const F16 quarter = quarter_scales(source, b);
      const bool first = b % summed_blocks(Group) == 0;
      const bool last = (b + 1) % summed_blocks(Group) == 0 || b + 1 == num_blocks;
      for (int r = 0; r < Rows; ++r) {
        const F16 sum = F16{_mm512_cvtepi32_ps(products[r])};
        // Clamped, a zero sum stays a zero where the product of the scales overflows; a NaN scale stays a NaN. A zero's
        // sign is lost in the output's sum, which starts at +0.
        const F16 scales = min(splat(kMaxFloat), quarter * splat(row_scale(r, b)));
        if (first) {
          runs[r] = sum * scales;
        } else {
          runs[r] = Fused ? fma(sum, scales, runs[r]) : runs[r] + sum * scales;
        }
        if (last) sums[r] = sums[r] + runs[r];
      }
    }
  }

  /// Block sums with their biases, [row].
  void multiply(const std::uint8_t* packed, int block, __m512i (&sums)[Rows]) const {
    const CodeUnpacker<false> unpacker;
    __m512i parts[Rows][Parts];
    for (int r = 0; r < Rows; ++r) {
      parts[r][0] = _mm512_setzero_si512();
      parts[r][Parts - 1] = _mm512_set1_epi32(bias(r, block));
    }
    for (int step = 0; step < Group / 8; ++step) {
      const __m512i raw = _mm512_load_si512(packed + step * 64);
      const __m512i low = unpacker.low(raw);
      const __m512i high = unpacker.high(raw);
      for (int r = 0; r < Rows; ++r) {
        for (int part = 0; part < Parts; ++part) {
          const std::int8_t* x = codes_[r] + part * kSuperblockColumns + block * Group + step * 8;
          dot_product(parts[r][part], low, x);
          dot_product(parts[r][part], high, x + 4);
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      sums[r] = parts[r][Parts - 1];
      if (Parts == 2) sums[r] = _mm512_add_epi32(sums[r], _mm512_slli_epi32(parts[r][0], 8));
    }
  }

  std::int32_t bias(int row, int block) const {
    const std::int32_t bias = args_.rows.block_biases[slots_[row] * (kSuperblockColumns / Group) + block];
    return has_magic_biases<Parts, Group>() ? bias - kMagicBits : bias;
  }

  float row_scale(int row, int block) const {
    return has_block_scales<Parts, Group>()
               ? args_.rows.block_scales[slots_[row] * (kSuperblockColumns / Group) + block]
               : args_.rows.scales[slots_[row]];
  }

  const IntegerArgs& args_;
  int64_t slots_[Rows];
  const std::int8_t* codes_[Rows];
};

/// Adds a superblock to up to `Rows` rows: rows[i] to sums[places[i]].
template <int Rows, int Parts, int Group>
void add_rows_by_block(const IntegerArgs& args, const int64_t* rows, const int* places, int num_rows,
                       const PanelSource& source, int64_t superblock, int num_blocks, F16* sums) {
  if constexpr (Rows > 1) {
    if (num_rows <= Rows / 2) {
      return add_rows_by_block<Rows / 2, Parts, Group>(args, rows, places, num_rows, source, superblock, num_blocks,
                                                       sums);
    }
  }
  int64_t filled[Rows];
  F16 own[Rows];
  for (int r = 0; r < Rows; ++r) {
    filled[r] = rows[r < num_rows ? r : 0];
    own[r] = sums[places[r < num_rows ? r : 0]];
  }
  ByBlock<Rows, Parts, Group>(args, filled, superblock).add(source, num_blocks, own);
  for (int r = 0; r < num_rows; ++r) sums[places[r]] = own[r];
}

/// Adds a superblock to the rows first_row + i of the bits i of `which`: to sums[i].
template <int Parts, int Group>
__attribute__((noinline)) void add_by_block(const IntegerArgs& args, int64_t first_row, std::uint32_t which,
                                            const PanelSource& source, int64_t superblock, int num_blocks, F16* sums) {
  constexpr int kStep = kByBlockRows / Parts;
  while (which != 0) {
    int64_t rows[kStep];
    int places[kStep];
    int count = 0;
    for (; count < kStep && which != 0; ++count, which &= which - 1) {
      places[count] = __builtin_ctz(which);
      rows[count] = first_row + places[count];
    }
    add_rows_by_block<kStep, Parts, Group>(args, rows, places, count, source, superblock, num_blocks, sums);
  }
}

/// Bits of the rows [first_row, first_row + num_rows), at most 32, whose scales in a superblock are not regular.
inline std::uint32_t irregular_rows(const IntegerArgs& args, int64_t first_row, int num_rows, int64_t superblock) {
  if (args.all_regular) return 0;
  const auto present = static_cast<__mmask32>((1ULL << num_rows) - 1U);
  const std::uint8_t* regular = args.rows.regular + superblock * args.rows.stride + first_row;
  return _mm256_mask_testn_epi8_mask(present, _mm256_maskz_loadu_epi8(present, regular), _mm256_set1_epi8(-1));
}

constexpr std::uint32_t all_rows(int num_rows) { return static_cast<std::uint32_t>((1ULL << num_rows) - 1U); }

}  // namespace nybble::NYBBLE_ISA
