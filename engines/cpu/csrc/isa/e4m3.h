#pragma once
// E4M3 numbers as float32, 2^-8 times their value: that is what float16 holds of them by shifting their bits, and
// products with weights then stay clear of the ends of float32's range. NaN codes are read as 480; the cache has none.

#include "half_floats.h"
#include "simd.h"

namespace nybble::NYBBLE_ISA {

#if defined(NYBBLE_ISA_AVX512)

/// Sixteen numbers.
static inline F16 load_small_e4m3(const std::uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i kept = _mm256_set1_epi16(static_cast<short>(0xbfff));  // of the copies of the sign, the first
  return {_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), kept))};
}

/// Sixteen numbers, the high bytes of `halves`.
static inline F16 widen_high_e4m3(__m256i halves) {
  const __m256i kept = _mm256_set1_epi16(static_cast<short>(0xbf80));
  return {_mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(halves, 1), kept))};
}

/// Of 16 pairs of numbers the first ones, or the second ones.
static inline F16 load_even_small_e4m3(const std::uint8_t* pairs) {
  return widen_high_e4m3(_mm256_slli_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)), 8));
}
static inline F16 load_odd_small_e4m3(const std::uint8_t* pairs) {
  return widen_high_e4m3(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)));
}

/// 64 bytes of pairs: the first and the second ones of 16 pairs, then those of the next 16. By way of memory, which
/// spares the instructions that bring a register's high half down.
static inline void load_small_e4m3_pairs(const std::uint8_t* pairs, F16 (&out)[4]) {
  const __m512i codes = _mm512_loadu_si512(pairs);
  const __m512i kept = _mm512_set1_epi16(static_cast<short>(0xbf80));
  __m512i halves[2] = {_mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 1), kept),
                       _mm512_and_si512(_mm512_srai_epi16(codes, 1), kept)};
  const auto widen = [&](int vector, int half) {
    const __m256i* from = reinterpret_cast<const __m256i*>(halves + vector) + half;
    __m512 wide;
    asm("vcvtph2ps %1, %0" : "=v"(wide) : "m"(*from));
    return F16{wide};
  };
  out[0] = widen(0, 0);
  out[1] = widen(1, 0);
  out[2] = widen(0, 1);
  out[3] = widen(1, 1);
}

#else

/// Bits of a float16 that is 2^-8 times the E4M3 number `code`.
static inline std::uint16_t e4m3_to_small_float16(std::uint8_t code) {
  return static_cast<std::uint16_t>((code & 0x80U) << 8 | (code & 0x7fU) << 7);
}

/// Sixteen numbers, `Step` bytes apart.
template <int Step>
static inline F16 load_small_e4m3_of(const std::uint8_t* p) {
  std::uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = e4m3_to_small_float16(p[Step * i]);
  return load_float16(halves);
}

static inline F16 load_small_e4m3(const std::uint8_t* p) { return load_small_e4m3_of<1>(p); }

/// Of 16 pairs of numbers the first ones, or the second ones.
static inline F16 load_even_small_e4m3(const std::uint8_t* pairs) { return load_small_e4m3_of<2>(pairs); }
static inline F16 load_odd_small_e4m3(const std::uint8_t* pairs) { return load_small_e4m3_of<2>(pairs + 1); }

#endif

}  // namespace nybble::NYBBLE_ISA
