#pragma once
// NVFP4 weights as tiles of bfloat16, exact: a code has 2 significant bits and an E4M3 scale 4, bfloat16 has 8.
//
// A weight's bits are its scale's bits plus what its code adds: to the exponent (codes 0.5, 1, 2, 4), to the mantissa
// (codes 1.5, 3, 6: the difference between 1.5 times the scale and the scale), and the sign. Per lane and block these
// are two words, so that an output vector costs a table look-up, an AND and a subtraction:
//   bits = max(0, (kCodes[code] & mask) - subtrahend)     with mask = 0xff80 | difference, subtrahend = kTop - scale
// where kCodes has kTop plus the exponent's part, the sign in bit 15, and 0x7f for codes with a mantissa. Zero codes
// are entries of 0 and a zero scale is a subtrahend of 0xffff: both saturate to 0.

#include "bfloat16_rows.h"
#include "integer_weights_avx512.h"
#include "unroll.h"

namespace nybble::NYBBLE_ISA {

constexpr int kTop = 136 << 7;  // above the bits of any scale

constexpr int power_of_two_bits(int exponent) { return (127 + exponent) << 7; }

/// bfloat16 bits of n * 2^-9, for n below 32.
constexpr int ninth_bits(int n) {
  int exponent = 0;
  while (n >> (exponent + 1) != 0) ++exponent;
  return power_of_two_bits(exponent - 9) + ((n << 7 >> exponent) & 0x7f);
}

/// Tables of 32 words, of which the index decides with its low four bits.
struct alignas(64) WordTables {
  std::uint16_t codes[32];
  std::uint16_t masks[32];        // by scale byte below 16; above, by 8 + mantissa
  std::uint16_t subtrahends[32];  // the same; above, the exponent is still to be subtracted
};

constexpr WordTables make_word_tables() {
  WordTables tables{};
  constexpr int kExponents[8] = {0, -1, 0, 0, 1, 1, 2, 2};
  for (int i = 0; i < 32; ++i) {
    const int code = i & 7, byte = i & 15;
    const int magnitude = kTop + kExponents[code] * 128 + (code >= 3 && code % 2 == 1 ? 0x7f : 0);
    tables.codes[i] = static_cast<std::uint16_t>(code == 0 ? 0 : magnitude | (i & 8) << 12);
    // Bytes 0..7 are subnormal: byte * 2^-9. Bytes 8..15: (8 + byte % 8) * 2^-9 as well.
    const int difference = byte == 0 ? 0 : ninth_bits(3 * byte) - 128 - ninth_bits(byte);
    tables.masks[i] = static_cast<std::uint16_t>(0xff80 | difference);
    tables.subtrahends[i] = static_cast<std::uint16_t>(byte == 0 ? 0xffff : kTop - ninth_bits(byte));
  }
  return tables;
}

constexpr WordTables kWordTables = make_word_tables();

/// Words of two blocks' scales: low words the first block's, high words the second's.
struct ScaleWords {
  __m512i mask;
  __m512i subtrahend;
};

inline ScaleWords scale_words(__m128i first, __m128i second) {
  const __m512i bytes =
      _mm512_or_si512(_mm512_cvtepu8_epi32(first), _mm512_slli_epi32(_mm512_cvtepu8_epi32(second), 16));
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i exponent = _mm512_max_epu16(_mm512_srli_epi16(bytes, 3), one);
  const __mmask32 above = _mm512_cmpgt_epu16_mask(bytes, _mm512_set1_epi16(15));
  const __m512i index = _mm512_mask_blend_epi16(above, bytes, _mm512_or_si512(bytes, _mm512_set1_epi16(8)));
  const __m512i lowest = _mm512_permutexvar_epi16(index, _mm512_load_si512(kWordTables.subtrahends));
  const __m512i steps = _mm512_slli_epi16(_mm512_sub_epi16(exponent, one), 7);
  return {_mm512_permutexvar_epi16(index, _mm512_load_si512(kWordTables.masks)), _mm512_sub_epi16(lowest, steps)};
}

/// Pairs of columns, one of each block, for 16 outputs: 16-bit indices with the code in the low four bits.
inline __m512i weight_pairs(__m512i codes, const ScaleWords& scales) {
  const __m512i bits = _mm512_permutexvar_epi16(codes, _mm512_load_si512(kWordTables.codes));
  return _mm512_subs_epu16(_mm512_and_si512(bits, scales.mask), scales.subtrahend);
}

/// Eight columns of two blocks, as packed (weights.h), into eight rows of a tile.
inline void unpack_columns(__m512i first, __m512i second, const ScaleWords& scales, std::uint16_t (*rows)[32]) {
  constexpr __mmask32 kHighWords = 0xaaaaaaaaU;
  const __m512i low = _mm512_mask_blend_epi16(kHighWords, first, _mm512_slli_epi32(second, 16));
  const __m512i high = _mm512_mask_blend_epi16(kHighWords, _mm512_srli_epi32(first, 16), second);
  const auto put = [&](int row, __m512i codes) { _mm512_store_si512(rows[row], weight_pairs(codes, scales)); };
  put(0, low);
  put(4, _mm512_srli_epi16(low, 4));
  put(1, _mm512_srli_epi16(low, 8));
  put(5, _mm512_srli_epi16(low, 12));
  put(2, high);
  put(6, _mm512_srli_epi16(high, 4));
  put(3, _mm512_srli_epi16(high, 8));
  put(7, _mm512_srli_epi16(high, 12));
}

/// One step of 32 columns of a panel. The second block may be missing.
inline void unpack_tile(const std::uint8_t* codes, const std::uint8_t* scales, bool second, std::uint16_t (*rows)[32]) {
  const auto bytes = [](const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  const ScaleWords words = scale_words(bytes(scales), second ? bytes(scales + 16) : _mm_setzero_si128());
  NYBBLE_UNROLL for (int half = 0; half < 2; ++half) {
    const std::uint8_t* line = codes + half * 64;
    const __m512i others = second ? _mm512_load_si512(line + 128) : _mm512_setzero_si512();
    unpack_columns(_mm512_load_si512(line), others, words, rows + half * 8);
  }
}

}  // namespace nybble::NYBBLE_ISA
