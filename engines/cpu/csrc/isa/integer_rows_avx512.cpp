// Activations brought into the order in which the integer products read them: superblock after superblock, and in each
// the rows one after the other. See integer_rows.h.

#include "bfloat16_rows.h"
#include "integer_rows.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Sum of up to 64 signed bytes.
inline std::int32_t sum_bytes(__m512i bytes) {
  return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes));
}

inline std::int32_t sum_block(const std::int8_t* codes, int count) {
  const __mmask64 mask = count == 64 ? ~0ULL : (1ULL << count) - 1;
  return sum_bytes(_mm512_maskz_loadu_epi8(mask, codes));
}

/// Exponent byte of a positive power of two a shared exponent can stand for, else -1.
inline int shareable_byte(float scale) {
  const std::uint32_t bits = float_to_bits(scale);
  const int byte = static_cast<int>(bits >> 23);
  return (bits & 0x7fffffU) == 0 && byte >= kLowestScaleByte && byte <= kHighestScaleByte ? byte : -1;
}

struct SharedExponent {
  bool regular;
  int lowest;
  int shifts[kSuperblockColumns / 32];
};

/// Blocks of zeros fit any exponent: `bytes` has 0 for them.
SharedExponent share_exponent(const int* bytes, int num_blocks) {
  int lowest = 255, highest = 0;
  bool regular = true;
  for (int b = 0; b < num_blocks; ++b) {
    if (bytes[b] == 0) continue;
    regular = regular && bytes[b] > 0;
    lowest = bytes[b] < lowest ? bytes[b] : lowest;
    highest = bytes[b] > highest ? bytes[b] : highest;
  }
  SharedExponent shared{regular && highest - lowest <= kMaxShift, lowest, {}};
  if (highest == 0) shared.lowest = 127;  // zeros only
  for (int b = 0; b < num_blocks; ++b) shared.shifts[b] = bytes[b] > 0 ? bytes[b] - shared.lowest : 0;
  return shared;
}

inline void shift_block(const std::int8_t* codes, int shift, std::int8_t* out) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  // A 16-bit shift moves bits of the low byte into the high one; they land in its lowest `shift` bits.
  const __m256i shifted = _mm256_sll_epi16(raw, _mm_cvtsi32_si128(shift));
  const __m256i kept = _mm256_and_si256(shifted, _mm256_set1_epi8(static_cast<char>(0xff << shift)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), kept);
}

/// Columns past the last count as zeros: a tile of 64 columns reads them.
inline void clear_rest(std::int8_t* codes, int64_t columns) {
  std::memset(codes + columns, 0, static_cast<std::size_t>(kSuperblockColumns - columns));
}

void prepare_shared(const W4A4Args& args, const IntegerRows& rows, int64_t row, int64_t superblock) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t num_blocks = num_columns / 32;
  const int count = static_cast<int>(superblock_columns(num_columns, superblock) / 32);
  const std::int8_t* codes = args.codes + row * num_columns + superblock * kSuperblockColumns;
  const float* scales = args.scales + row * num_blocks + superblock * (kSuperblockColumns / 32);
  const int64_t slot = superblock * args.num_rows + row;
  const int64_t block = slot * (kSuperblockColumns / 32);
  int bytes[kSuperblockColumns / 32];
  for (int b = 0; b < count; ++b) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + b * 32));
    const bool zeros = _mm256_testz_si256(raw, raw) && scales[b] < kMaxFloat;
    bytes[b] = zeros ? 0 : shareable_byte(scales[b]);
    rows.block_scales[block + b] = scales[b];
    rows.block_biases[block + b] = -kBlockBias * sum_block(codes + b * 32, 32);
  }
  const SharedExponent shared = share_exponent(bytes, count);
  std::int8_t* out = rows.codes + slot * kSuperblockColumns;
  rows.regular[slot] = shared.regular;
  std::int32_t bias = 0;
  for (int b = 0; b < count; ++b) {
    if (shared.regular) {
      shift_block(codes + b * 32, shared.shifts[b], out + b * 32);
      bias += (rows.block_biases[block + b] << shared.shifts[b]) * (kSharedBias / kBlockBias);
    } else {  // adds nothing in the shared product; summed block by block afterwards
      std::memset(out + b * 32, 0, 32);
    }
  }
  clear_rest(out, count * 32);
  rows.biases[slot] = shared.regular ? bias : 0;
  rows.scales[slot] = shared.regular ? bits_to_float(static_cast<std::uint32_t>(shared.lowest) << 23) : 0.0F;
}

void prepare_blocks(const W4A4Args& args, const IntegerRows& rows, int64_t row, int64_t superblock) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t columns = superblock_columns(num_columns, superblock);
  const std::int8_t* codes = args.codes + row * num_columns + superblock * kSuperblockColumns;
  const int64_t slot = superblock * args.num_rows + row;
  std::memcpy(rows.codes + slot * kSuperblockColumns, codes, static_cast<std::size_t>(columns));
  const float* scales = args.scales + row * (num_columns / 16) + superblock * (kSuperblockColumns / 16);
  const int64_t block = slot * (kSuperblockColumns / 16);
  rows.regular[slot] = all_e4m3(scales, columns / 16);
  for (int64_t b = 0; b < columns / 16; ++b) {
    rows.block_scales[block + b] = scales[b];
    rows.block_biases[block + b] = kMagicBits - kBlockBias * sum_block(codes + b * 16, 16);
  }
}

inline void split_integers(__m512i integers, std::int8_t* high, std::int8_t* low) {
  const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(h));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(integers));
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
  const int64_t num_superblocks = (args.weight.num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
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
  const int64_t num_superblocks = (num_columns + kSuperblockColumns - 1) / kSuperblockColumns;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
      const int64_t columns = superblock_columns(num_columns, superblock);
      const int64_t slot = superblock * args.num_rows + row;
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
