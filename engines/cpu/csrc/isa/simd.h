#pragma once
// Sixteen float lanes on AVX-512 (one register), AVX2 (two) and GCC vectors of four (SSE2, NEON).

#include <cstring>

#include "instruction_set.h"

namespace nybble::NYBBLE_ISA {

#if defined(NYBBLE_ISA_AVX512)

struct F16 {
  __m512 v;
};
static inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
static inline F16 splat(float a) { return {_mm512_set1_ps(a)}; }
static inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// Both return `b` when either is NaN.
static inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
/// `a` with 0 in place of lanes below those of `least`; NaN stays.
static inline F16 zero_below(F16 a, F16 least) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, least.v, _CMP_NLT_UQ), a.v)};
}

#elif defined(NYBBLE_ISA_AVX2)

struct F16 {
  __m256 lo, hi;
};
static inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline F16 splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
static inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
static inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
static inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
static inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
static inline F16 fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
static inline F16 zero_below(F16 a, F16 least) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(a.lo, least.lo, _CMP_NLT_UQ)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(a.hi, least.hi, _CMP_NLT_UQ))};
}

#else

typedef float F4 __attribute__((vector_size(16)));
typedef std::int32_t I4 __attribute__((vector_size(16)));

struct F16 {
  F4 v[4];
};

template <typename Operation>
static inline F16 lanewise(Operation operation) {
  F16 result;
  for (int i = 0; i < 4; ++i) result.v[i] = operation(i);
  return result;
}
static inline F4 select(I4 mask, F4 a, F4 b) { return (F4)((mask & (I4)a) | (~mask & (I4)b)); }
static inline F16 load(const float* p) {
  F16 result;
  std::memcpy(result.v, p, sizeof(result.v));
  return result;
}
static inline void store(float* p, const F16& a) { std::memcpy(p, a.v, sizeof(a.v)); }
static inline F16 splat(float a) {
  return lanewise([&](int) { return F4{a, a, a, a}; });
}
static inline F16 operator+(const F16& a, const F16& b) {
  return lanewise([&](int i) { return a.v[i] + b.v[i]; });
}
static inline F16 operator-(const F16& a, const F16& b) {
  return lanewise([&](int i) { return a.v[i] - b.v[i]; });
}
static inline F16 operator*(const F16& a, const F16& b) {
  return lanewise([&](int i) { return a.v[i] * b.v[i]; });
}
static inline F16 operator/(const F16& a, const F16& b) {
  return lanewise([&](int i) { return a.v[i] / b.v[i]; });
}
static inline F16 fma(const F16& a, const F16& b, const F16& c) {
#if defined(__aarch64__)
  return lanewise([&](int i) { return (F4)vfmaq_f32((float32x4_t)c.v[i], (float32x4_t)a.v[i], (float32x4_t)b.v[i]); });
#else
  return a * b + c;  // SSE2 has no fused form
#endif
}
static inline F16 max(const F16& a, const F16& b) {
  return lanewise([&](int i) { return select(a.v[i] > b.v[i], a.v[i], b.v[i]); });
}
static inline F16 min(const F16& a, const F16& b) {
  return lanewise([&](int i) { return select(a.v[i] < b.v[i], a.v[i], b.v[i]); });
}
static inline F16 zero_below(const F16& a, const F16& least) {
  return lanewise([&](int i) { return (F4)((I4)a.v[i] & ~(I4)(a.v[i] < least.v[i])); });
}

#endif

}  // namespace nybble::NYBBLE_ISA
