#pragma once
// Sixteen lanes from and to numbers of 16 bits: bfloat16 and float16.

#include <cstring>

#include "float_bits.h"
#include "simd.h"

namespace nybble::NYBBLE_ISA {

#if defined(NYBBLE_ISA_AVX512)

static inline F16 load_bfloat16(const std::uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
/// Of 16 pairs of bfloat16 numbers the first ones, or the second ones.
static inline F16 load_even_bfloat16(const void* pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16))};
}
static inline F16 load_odd_bfloat16(const void* pairs) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), high))};
}
static inline F16 load_float16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
/// Lanes rounded to bfloat16 (nearest even); NaN lanes stay NaN because the callers' NaNs have a quiet bit.
static inline F16 round_bfloat16(F16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return {_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000U))))};
}

/// Rounds to nearest even; NaN stays NaN.
static inline void store_bfloat16(std::uint16_t* p, F16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

#elif defined(NYBBLE_ISA_AVX2)

static inline __m256 widen_bfloat16(__m128i raw) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
static inline F16 load_bfloat16(const std::uint16_t* p) {
  return {widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline F16 load_even_bfloat16(const void* pairs) {
  const auto* p = static_cast<const __m256i*>(pairs);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p + 1), 16))};
}
static inline F16 load_odd_bfloat16(const void* pairs) {
  const auto* p = static_cast<const __m256i*>(pairs);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p), high)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p + 1), high))};
}
static inline F16 load_float16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline __m256 round_bfloat16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}
static inline F16 round_bfloat16(F16 a) { return {round_bfloat16(a.lo), round_bfloat16(a.hi)}; }

#else

static inline F16 load_bfloat16(const std::uint16_t* p) {
  alignas(64) float values[16];
  for (int i = 0; i < 16; ++i) values[i] = bfloat16_to_float(p[i]);
  return load(values);
}
static inline F16 load_even_bfloat16(const void* pairs) {
  I4 lanes[4];
  std::memcpy(lanes, pairs, sizeof(lanes));
  return lanewise([&](int i) { return (F4)(lanes[i] << 16); });
}
static inline F16 load_odd_bfloat16(const void* pairs) {
  I4 lanes[4];
  std::memcpy(lanes, pairs, sizeof(lanes));
  return lanewise([&](int i) { return (F4)(lanes[i] & static_cast<std::int32_t>(0xffff0000U)); });
}
static inline F16 load_float16(const std::uint16_t* p) {
  alignas(64) float values[16];
  for (int i = 0; i < 16; ++i) values[i] = float16_to_float(p[i]);
  return load(values);
}
static inline F16 round_bfloat16(const F16& a) {
  return lanewise([&](int i) {
    const I4 bits = (I4)a.v[i];
    return (F4)((bits + 0x7fff + ((bits >> 16) & 1)) & static_cast<std::int32_t>(0xffff0000U));
  });
}

#endif

#if !defined(NYBBLE_ISA_AVX512)
/// Rounds to nearest even; NaN stays NaN.
static inline void store_bfloat16(std::uint16_t* p, const F16& a) {
  alignas(64) float lane[16];
  store(lane, a);
  for (int i = 0; i < 16; ++i) p[i] = float_to_bfloat16(lane[i]);
}
#endif

}  // namespace nybble::NYBBLE_ISA
