#pragma once
// e^x and 2^x of sixteen lanes, by polynomials.

#include "simd.h"

namespace nybble::NYBBLE_ISA {

#if defined(NYBBLE_ISA_AVX512)
/// 2^n for lanes n that hold whole numbers in [-126, 127].
static inline F16 exp2_whole(F16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
#elif defined(NYBBLE_ISA_AVX2)
static inline __m256 exp2_whole(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
static inline F16 exp2_whole(F16 n) { return {exp2_whole(n.lo), exp2_whole(n.hi)}; }
#else
static inline F16 exp2_whole(const F16& n) {
  return lanewise([&](int i) { return (F4)((__builtin_convertvector(n.v[i], I4) + 127) << 23); });
}
#endif

/// e^x within about 1 ulp for x in [-87, 88], clamped outside; NaN stays NaN.
static inline F16 exp(F16 x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to a whole number
  x = min(splat(88.0F), max(splat(-87.0F), x));
  const F16 n = (x * splat(1.44269504F) + splat(kMagic)) - splat(kMagic);
  F16 r = fma(n, splat(-0x1.62e4p-1F), x);  // ln 2 in two parts: n times the first is exact
  r = fma(n, splat(-0x1.7f7d1cp-20F), r);
  F16 p = splat(1.0F / 5040.0F);
  p = fma(p, r, splat(1.0F / 720.0F));
  p = fma(p, r, splat(1.0F / 120.0F));
  p = fma(p, r, splat(1.0F / 24.0F));
  p = fma(p, r, splat(1.0F / 6.0F));
  p = fma(p, r, splat(0.5F));
  p = fma(p, r, splat(1.0F));
  p = fma(p, r, splat(1.0F));
  return p * exp2_whole(n);
}

/// 2^x within about 1 ulp for x in [-125, 126], exactly 1 for 0; below -125 as at -125; NaN stays NaN.
static inline F16 exp2(F16 x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to a whole number
  x = max(splat(-125.0F), x);
  const F16 n = (x + splat(kMagic)) - splat(kMagic);
  const F16 r = x - n;
  F16 p = splat(0x1.41fbbcp-13F);  // least largest relative error over [-1/2, 1/2], about 2^-29
  p = fma(p, r, splat(0x1.5f3e54p-10F));
  p = fma(p, r, splat(0x1.3b2d4cp-7F));
  p = fma(p, r, splat(0x1.c6aee8p-5F));
  p = fma(p, r, splat(0x1.ebfbdcp-3F));
  p = fma(p, r, splat(0x1.62e430p-1F));
  p = fma(p, r, splat(1.0F));
#if defined(NYBBLE_ISA_AVX512)
  return {_mm512_scalef_ps(p.v, n.v)};
#else
  return p * exp2_whole(n);
#endif
}

}  // namespace nybble::NYBBLE_ISA
