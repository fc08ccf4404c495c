// Activations brought into the order in which the integer products read them: superblock after superblock, and in each
// the rows one after the other. See integer_rows.h.

#include "bfloat16_rows.h"
#include "float_bits.h"
#include "integer_rows.h"
#include "shared_exponents_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

void prepare_blocks(const W4A4Args& args, const IntegerRows& rows, int64_t row, int64_t superblock) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t columns = superblock_columns(num_columns, superblock);
  const std::int8_t* codes = args.codes + row * num_columns + superblock * kSuperblockColumns;
  const int64_t slot = superblock * rows.stride + row;
  std::memcpy(rows.codes + slot * kSuperblockColumns, codes, static_cast<std::size_t>(columns));
  const float* scales = args.scales + row * (num_columns / 16) + superblock * (kSuperblockColumns / 16);
  const int64_t block = slot * (kSuperblockColumns / 16);
  rows.regular[slot] = all_e4m3(scales, columns / 16);
  std::memcpy(rows.block_scales + block, scales, static_cast<std::size_t>(columns / 16) * sizeof(float));
  int64_t b = 0;
  for (; b + 4 <= columns / 16; b += 4) {
    const __m512i sums = sum_lanes_of_128(_mm512_loadu_si512(codes + b * 16));
    const __m512i biases =
        _mm512_sub_epi32(_mm512_set1_epi32(kMagicBits), _mm512_mullo_epi32(sums, _mm512_set1_epi32(kBlockBias)));
    const __m512i firsts = _mm512_maskz_compress_epi32(0x1111, biases);  // of each four lanes
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows.block_biases + block + b), _mm512_castsi512_si128(firsts));
  }
  for (; b < columns / 16; ++b) {
    rows.block_biases[block + b] = kMagicBits - kBlockBias * sum_block(codes + b * 16, 16);
  }
}

/// Up to 128 values as 16-bit integers times a power of two: q = 256 * high + low, error at most half a unit of the
/// largest magnitude over 2^15. A NaN or infinity makes the scale NaN.
void split_columns(const float* x, int64_t columns, std::int8_t* high, std::int8_t* low, float* scale) {
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < columns; i += 16) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
  }
  const std::uint32_t bits = _mm512_reduce_max_epu32(largest);
  if (bits >= 0x7f800000U) {
    std::memset(high, 0, static_cast<std::size_t>(columns));
    std::memset(low, 0, static_cast<std::size_t>(columns));
    *scale = bits_to_float(0x7fc00000U);
    return;
  }
  // |q| must stay at or below 127 * 256 + 127: a mantissa near 2 takes the next exponent.
  int exponent = static_cast<int>(bits >> 23) + ((bits & 0x7fffffU) >= 0x7d0000U ? 1 : 0);
  if (exponent < 30) exponent = 30;  // below 2^-97 the step stays 2^-111
  // Twice the unit: the kernels' quarter stands for two doubled operands, and this one is not doubled.
  *scale = bits_to_float(static_cast<std::uint32_t>(exponent - 13) << 23);
  const __m512 inverse = _mm512_set1_ps(bits_to_float(static_cast<std::uint32_t>(254 - (exponent - 14)) << 23));
  for (int64_t i = 0; i < columns; i += 16) {
    split_integers(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse)), high + i, low + i);
  }
}

/// A block of 16 as bfloat16 tiles would see it.
void split_rounded_block(const float* x, std::int8_t* high, std::int8_t* low, float* scale) {
  const BlockIntegers block = block_integers(x);
  split_integers(block.integers, high, low);
  *scale = 2.0F * block.unit;
}

}  // namespace

void prepare_w4a4(const W4A4Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end) {
  const int64_t num_superblocks = count_superblocks(args.weight.num_columns);
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      if (args.weight.group_size == 32) {
        prepare_shared(args, rows, row, superblock);
      } else {
        prepare_blocks(args, rows, row, superblock);
      }
    }
  }
}

namespace {

template <bool Rounded>
void prepare_rows_w4a16(const Fp4F32Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end) {
  const int64_t num_columns = args.weight.num_columns;
  const int group = args.weight.group_size;
  const int64_t num_superblocks = count_superblocks(num_columns);
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      const int64_t columns = superblock_columns(num_columns, superblock);
      const int64_t slot = superblock * rows.stride + row;
      std::int8_t* high = rows.codes + slot * 2 * kSuperblockColumns;
      std::int8_t* low = high + kSuperblockColumns;
      const float* x = args.x + row * num_columns + superblock * kSuperblockColumns;
      const int64_t block = slot * (kSuperblockColumns / group);
      if (group == 32) {
        split_columns(x, columns, high, low, rows.scales + slot);
      } else {
        for (int64_t b = 0; b < columns / 16; ++b) {
          float* scale = rows.block_scales + block + b;
          if (Rounded) {
            split_rounded_block(x + b * 16, high + b * 16, low + b * 16, scale);
          } else {
            split_columns(x + b * 16, 16, high + b * 16, low + b * 16, scale);
          }
        }
      }
      clear_rest(high, columns);
      clear_rest(low, columns);
      std::int32_t total = 0;
      for (int64_t b = 0; b < columns / group; ++b) {
        const std::int32_t sum = 256 * sum_block(high + b * group, group) + sum_block(low + b * group, group);
        rows.block_biases[block + b] = -kBlockBias * sum;
        total += sum;
      }
      rows.biases[slot] = -kSharedBias * total;
      rows.regular[slot] = 1;
    }
  }
}

}  // namespace

void prepare_w4a16(const Fp4F32Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end) {
  prepare_rows_w4a16<false>(args, rows, row_begin, row_end);
}

void prepare_w4a16_rounded(const Fp4F32Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end) {
  prepare_rows_w4a16<true>(args, rows, row_begin, row_end);
}

}  // namespace nybble::NYBBLE_ISA
