#pragma once
// Some of sixteen lanes, or all of them as one number.

#include "simd.h"

namespace nybble::NYBBLE_ISA {

/// Lanes [begin, end) of `a`, the others of `b`; ends outside [0, 16] are taken as the nearer one.
static inline F16 select_lanes(F16 a, F16 b, int64_t begin, int64_t end) {
  if (begin <= 0 && end >= 16) return a;
#if defined(NYBBLE_ISA_AVX512)
  const std::uint32_t below_end = (1U << min64(max64(end, 0), 16)) - 1U;
  const std::uint32_t below_begin = (1U << min64(max64(begin, 0), 16)) - 1U;
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(below_end & ~below_begin), b.v, a.v)};
#else
  alignas(64) float lane[16];
  alignas(64) float other[16];
  store(lane, a);
  store(other, b);
  for (int i = 0; i < 16; ++i) lane[i] = i >= begin && i < end ? lane[i] : other[i];
  return load(lane);
#endif
}

#if !defined(NYBBLE_ISA_AVX512)
/// Joins the lanes as a fixed binary tree: i with i+8, then i+4, i+2, i+1.
template <typename Join>
static inline float join_lanes(F16 a, const Join& join) {
  alignas(64) float lane[16];
  store(lane, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = join(lane[i], lane[i + half]);
  }
  return lane[0];
}
#endif

/// Adds the lanes as a fixed binary tree: i with i+8, then i+4, i+2, i+1.
static inline float sum_lanes(F16 a) {
#if defined(NYBBLE_ISA_AVX512)
  return _mm512_reduce_add_ps(a.v);
#else
  return join_lanes(a, [](float x, float y) { return x + y; });
#endif
}

/// Largest lane; NaN lanes may or may not count.
static inline float max_lanes(F16 a) {
#if defined(NYBBLE_ISA_AVX512)
  return _mm512_reduce_max_ps(a.v);
#else
  return join_lanes(a, [](float x, float y) { return x > y ? x : y; });
#endif
}

static inline F16 load_partial(const float* p, int64_t count) {
  alignas(64) float lane[16] = {};
  for (int64_t i = 0; i < count; ++i) lane[i] = p[i];
  return load(lane);
}

static inline void store_partial(float* p, F16 a, int64_t count) {
  if (count >= 16) return store(p, a);
  alignas(64) float lane[16];
  store(lane, a);
  for (int64_t i = 0; i < count; ++i) p[i] = lane[i];
}

/// a[0], b[0], a[1], b[1] ...
static inline void store_interleaved(float* p, F16 a, F16 b) {
#if defined(NYBBLE_ISA_AVX512)
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(p, _mm512_permutex2var_ps(a.v, low, b.v));
  _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(a.v, high, b.v));
#else
  alignas(64) float first[16], second[16];
  store(first, a);
  store(second, b);
  for (int i = 0; i < 16; ++i) {
    p[2 * i] = first[i];
    p[2 * i + 1] = second[i];
  }
#endif
}

}  // namespace nybble::NYBBLE_ISA
