#pragma once
// Sixteen float lanes on AVX-512 (one register), AVX2 (two) and GCC vectors of four (SSE2, NEON).
//
// Everything is static inline inside a per-ISA namespace, and per-ISA sources use no standard library templates: a
// template instantiated here with wide instructions could otherwise be the copy the linker keeps for everyone.

#include <cstdint>
#include <cstring>

#include "../kernel_table.h"

#if defined(NYBBLE_ISA_AVX512)
#include <immintrin.h>
#define NYBBLE_ISA avx512
#elif defined(NYBBLE_ISA_AVX2)
#include <immintrin.h>
#define NYBBLE_ISA avx2
#else
#define NYBBLE_ISA plain
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#endif

namespace nybble::NYBBLE_ISA {

using std::int64_t;

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// Round to nearest even; NaN stays NaN.
static inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

static inline float bfloat16_to_float(std::uint16_t bits) {
  return bits_to_float(static_cast<std::uint32_t>(bits) << 16);
}

static inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) return bits_to_float(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  // A float16 magnitude shifted into a float32 is too small by 2^112; the product is exact, subnormals included.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112F));
}

#if defined(NYBBLE_ISA_AVX512)

constexpr int kChains = 4;        // independent sums per output of a float32 linear, k modulo kChains
constexpr int kRowTile = 4;       // batch rows sharing one pass over weights in memory, all chains at once
constexpr int kWideRowTile = 12;  // batch rows sharing one pass over decoded weights, a chain at a time

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
/// 2^n for lanes n that hold whole numbers in [-126, 127].
static inline F16 exp2_whole(F16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
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

constexpr int kChains = 2;
constexpr int kRowTile = 2;
constexpr int kWideRowTile = 4;

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
static inline __m256 exp2_whole(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
static inline F16 exp2_whole(F16 n) { return {exp2_whole(n.lo), exp2_whole(n.hi)}; }
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

constexpr int kChains = 2;
constexpr int kRowTile = 2;
constexpr int kWideRowTile = 4;

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
static inline F16 exp2_whole(const F16& n) {
  return lanewise([&](int i) { return (F4)((__builtin_convertvector(n.v[i], I4) + 127) << 23); });
}
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

/// Adds the lanes as a fixed binary tree: i with i+8, then i+4, i+2, i+1.
static inline float sum_lanes(F16 a) {
#if defined(NYBBLE_ISA_AVX512)
  return _mm512_reduce_add_ps(a.v);
#else
  alignas(64) float lane[16];
  store(lane, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
#endif
}

/// Largest lane; NaN lanes may or may not count.
static inline float max_lanes(F16 a) {
#if defined(NYBBLE_ISA_AVX512)
  return _mm512_reduce_max_ps(a.v);
#else
  alignas(64) float lane[16];
  store(lane, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  }
  return lane[0];
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
