#pragma once
// A row's superblock for W4A4 MXFP4: codes shifted to the lowest exponent of its blocks. See integer_rows.h.

#include "float_bits.h"
#include "integer_rows.h"

namespace nybble::NYBBLE_ISA {

/// Sum of up to 64 signed bytes.
static inline std::int32_t sum_bytes(__m512i bytes) {
  return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes));
}

static inline std::int32_t sum_block(const std::int8_t* codes, int count) {
  const __mmask64 mask = count == 64 ? ~0ULL : (1ULL << count) - 1;
  return sum_bytes(_mm512_maskz_loadu_epi8(mask, codes));
}

/// Exponent byte of a positive power of two a shared exponent can stand for, else -1.
static inline int shareable_byte(float scale) {
  const std::uint32_t bits = float_to_bits(scale);
  const int byte = static_cast<int>(bits >> 23);
  return (bits & 0x7fffffU) == 0 && byte >= kLowestScaleByte && byte <= kHighestScaleByte ? byte : -1;
}

struct SharedExponent {
  bool regular;
  bool in_two;  // two products do, if not one (spread_rows_avx512.h)
  int lowest;
  int shifts[kSuperblockColumns / 32];
};

/// Blocks of zeros fit any exponent: `bytes` has 0 for them.
static inline SharedExponent share_exponent(const int* bytes, int num_blocks) {
  int lowest = 255, highest = 0;
  bool regular = true;
  for (int b = 0; b < num_blocks; ++b) {
    if (bytes[b] == 0) continue;
    regular = regular && bytes[b] > 0;
    lowest = bytes[b] < lowest ? bytes[b] : lowest;
    highest = bytes[b] > highest ? bytes[b] : highest;
  }
  const int distance = highest - lowest;
  SharedExponent shared{regular && distance <= kMaxShift, regular && distance <= kMaxSpread, lowest, {}};
  if (highest == 0) shared.lowest = 127;  // zeros only
  for (int b = 0; b < num_blocks; ++b) shared.shifts[b] = bytes[b] > 0 ? bytes[b] - shared.lowest : 0;
  return shared;
}

static inline void shift_block(const std::int8_t* codes, int shift, std::int8_t* out) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  // A 16-bit shift moves bits of the low byte into the high one; they land in its lowest `shift` bits.
  const __m256i shifted = _mm256_sll_epi16(raw, _mm_cvtsi32_si128(shift));
  const __m256i kept = _mm256_and_si256(shifted, _mm256_set1_epi8(static_cast<char>(0xff << shift)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), kept);
}

/// Columns past the last count as zeros: a tile of 64 columns reads them.
static inline void clear_rest(std::int8_t* codes, int64_t columns) {
  std::memset(codes + columns, 0, static_cast<std::size_t>(kSuperblockColumns - columns));
}

/// Sums of each 128 bits of doubled codes.
static inline __m512i sum_lanes_of_128(__m512i codes) {
  const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
  const __m512i eights = _mm512_add_epi32(fours, _mm512_shuffle_epi32(fours, _MM_PERM_CDAB));
  return _mm512_add_epi32(eights, _mm512_shuffle_epi32(eights, _MM_PERM_BADC));
}

/// Each 32-bit lane of four (those of `half` 0 or 1) eight times: a block's value beside all of its 32 codes.
template <int Half>
static inline __m512i beside_codes(__m128i values) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_epi32(_mm512_or_si512(lanes, _mm512_set1_epi32(Half * 2)), _mm512_castsi128_si512(values));
}

/// Codes of two blocks shifted left by those blocks' lanes of `shifts`, as 16-bit words: bits of a low byte land in the
/// lowest `shift` bits of the high one, where kept_bits() takes them away.
template <int Half>
static inline __m512i shift_words(__m512i codes, __m128i shifts) {
  return _mm512_sllv_epi16(codes, beside_codes<Half>(_mm_or_si128(shifts, _mm_slli_epi32(shifts, 16))));
}

/// Of each block the bits that remain in its bytes when they are shifted by its lane.
static inline __m128i kept_bits(__m128i shifts) {
  return _mm_shuffle_epi8(_mm_sllv_epi32(_mm_set1_epi32(0xff), shifts),
                          _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
}

static inline std::int32_t reduce_min(__m128i lanes) {
  const __m128i two = _mm_min_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
  return _mm_cvtsi128_si32(_mm_min_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

static inline std::int32_t reduce_max(__m128i lanes) {
  const __m128i two = _mm_max_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

static inline std::int32_t reduce_add(__m128i lanes) {
  const __m128i two = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/// `prepare_shared` for a whole superblock whose blocks share an exponent; false, and nothing that counts is written,
/// where they do not.
static inline bool prepare_whole_shared(const std::int8_t* codes, const float* scales, const IntegerRows& rows,
                                        int64_t slot) {
  const __m512i first = _mm512_loadu_si512(codes), second = _mm512_loadu_si512(codes + 64);
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  const __m128i bytes = _mm_srli_epi32(bits, 23);  // a negative scale's is above kHighestScaleByte
  const auto some = [](std::uint64_t present) { return (present & 0xffffffffU ? 1 : 0) | (present >> 32 ? 2 : 0); };
  const auto present = static_cast<__mmask8>(some(_mm512_test_epi8_mask(first, first)) |
                                             some(_mm512_test_epi8_mask(second, second)) << 2);
  // Blocks of zeros fit any exponent, and a scale of any finite value.
  const __mmask8 fractions = _mm_test_epi32_mask(bits, _mm_set1_epi32(0x7fffff));
  const __mmask8 low = _mm_cmplt_epi32_mask(bytes, _mm_set1_epi32(kLowestScaleByte));
  const __mmask8 high = _mm_cmpgt_epi32_mask(bytes, _mm_set1_epi32(kHighestScaleByte));
  if (((fractions | low | high) & present) != 0 ||
      _mm_cmp_ps_mask(_mm_castsi128_ps(bits), _mm_set1_ps(kMaxFloat), _CMP_LT_OQ) != 15) {
    return false;
  }
  int lowest = 127;  // zeros only
  if (present != 0) {
    lowest = reduce_min(_mm_mask_mov_epi32(_mm_set1_epi32(255), present, bytes));
    if (reduce_max(_mm_maskz_mov_epi32(present, bytes)) - lowest > kMaxShift) return false;
  }
  const __m128i shifts = _mm_maskz_sub_epi32(present, bytes, _mm_set1_epi32(lowest));
  const __m128i kept = kept_bits(shifts);
  std::int8_t* out = rows.codes + slot * kSuperblockColumns;
  _mm512_storeu_si512(out, _mm512_and_si512(shift_words<0>(first, shifts), beside_codes<0>(kept)));
  _mm512_storeu_si512(out + 64, _mm512_and_si512(shift_words<1>(second, shifts), beside_codes<1>(kept)));
  // Of each block two lanes of 128 bits: the first dwords of them all, then in pairs.
  const __m512i every = _mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i halves =
      _mm512_castsi512_si256(_mm512_permutex2var_epi32(sum_lanes_of_128(first), every, sum_lanes_of_128(second)));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  const __m128i biases = _mm_mullo_epi32(sums, _mm_set1_epi32(-kBlockBias));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows.block_biases + slot * 4), biases);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rows.block_scales + slot * 4), bits);
  rows.biases[slot] = reduce_add(_mm_sllv_epi32(biases, shifts)) * (kSharedBias / kBlockBias);
  rows.scales[slot] = bits_to_float(static_cast<std::uint32_t>(lowest) << 23);
  rows.regular[slot] = 1;
  return true;
}

static inline void prepare_shared(const W4A4Args& args, const IntegerRows& rows, int64_t row, int64_t superblock) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t num_blocks = num_columns / 32;
  const int count = static_cast<int>(superblock_columns(num_columns, superblock) / 32);
  const std::int8_t* codes = args.codes + row * num_columns + superblock * kSuperblockColumns;
  const float* scales = args.scales + row * num_blocks + superblock * (kSuperblockColumns / 32);
  const int64_t slot = superblock * rows.stride + row;
  if (count == kSuperblockColumns / 32 && prepare_whole_shared(codes, scales, rows, slot)) return;
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
  rows.scales[slot] = shared.in_two ? bits_to_float(static_cast<std::uint32_t>(shared.lowest) << 23) : kOutOfReach;
}

}  // namespace nybble::NYBBLE_ISA
