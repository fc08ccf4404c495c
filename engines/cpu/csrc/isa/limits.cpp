// What one core can do at most: independent chains of one instruction on registers, and a plain read of memory.
// Nothing here computes anything anybody needs; the sums only keep the compiler from dropping the loops.

#include "kernels.h"

namespace nybble::NYBBLE_ISA {

namespace {

// Enough to hide a latency of 5 at two instructions a cycle.
constexpr int kPeakChains = 12;

/// Keeps a value alive without storing it.
template <typename Value>
inline void keep(const Value& value) {
  asm volatile("" : : "m"(value) : "memory");
}

#if defined(NYBBLE_ISA_AVX512)

__attribute__((target("avx512bf16"))) double bfloat16_peak(int64_t iterations) {
  __m512 acc[kPeakChains];
  for (int c = 0; c < kPeakChains; ++c) acc[c] = _mm512_set1_ps(static_cast<float>(c));
  __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80);
  asm volatile("" : "+v"(a));
  for (int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < kPeakChains; ++c) acc[c] = _mm512_dpbf16_ps(acc[c], a, a);
    asm volatile("" : "+v"(a));
  }
  for (int c = 0; c < kPeakChains; ++c) keep(acc[c]);
  return static_cast<double>(iterations) * kPeakChains * 64;
}

double int8_peak(int64_t iterations) {
  __m512i acc[kPeakChains];
  for (int c = 0; c < kPeakChains; ++c) acc[c] = _mm512_set1_epi32(c);
  __m512i a = _mm512_set1_epi8(1);
  asm volatile("" : "+v"(a));
  for (int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < kPeakChains; ++c) acc[c] = _mm512_dpbusd_epi32(acc[c], a, a);
    asm volatile("" : "+v"(a));
  }
  for (int c = 0; c < kPeakChains; ++c) keep(acc[c]);
  return static_cast<double>(iterations) * kPeakChains * 128;
}

#elif defined(NYBBLE_ISA_AVX2)

double bfloat16_peak(int64_t) { return 0.0; }

// The three instructions that make an int8 dot product here: vpmaddubsw, vpmaddwd, vpaddd.
double int8_peak(int64_t iterations) {
  __m256i acc[kPeakChains];
  for (int c = 0; c < kPeakChains; ++c) acc[c] = _mm256_set1_epi32(c);
  __m256i a = _mm256_set1_epi8(1);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < kPeakChains; ++c) {
      asm volatile("" : "+x"(a));
      acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), ones));
    }
  }
  for (int c = 0; c < kPeakChains; ++c) keep(acc[c]);
  return static_cast<double>(iterations) * kPeakChains * 64;
}

#else

double bfloat16_peak(int64_t) { return 0.0; }
double int8_peak(int64_t) { return 0.0; }

#endif

double float32_peak(int64_t iterations) {
#if defined(NYBBLE_ISA_AVX512)
  constexpr int kChainsHere = kPeakChains;
#else
  constexpr int kChainsHere = 5;  // a value of 16 lanes takes two registers or four
#endif
  F16 acc[kChainsHere];
  for (int c = 0; c < kChainsHere; ++c) acc[c] = splat(static_cast<float>(c));
  const F16 half = splat(0.5F);
  for (int64_t i = 0; i < iterations; ++i) {
    for (int c = 0; c < kChainsHere; ++c) acc[c] = fma(acc[c], half, half);
  }
  for (int c = 0; c < kChainsHere; ++c) keep(acc[c]);
  return static_cast<double>(iterations) * kChainsHere * 32;
}

}  // namespace

double limit_operations(LimitKind kind, int64_t iterations) {
  switch (kind) {
    case LimitKind::kFloat32Fma:
      return float32_peak(iterations);
    case LimitKind::kInt8Dot:
      return int8_peak(iterations);
    case LimitKind::kBfloat16Dot:
      return bfloat16_peak(iterations);
    default:
      return 0.0;
  }
}

void read_memory(const std::uint8_t* data, int64_t num_bytes) {
  constexpr int64_t kAhead = 2048;  // prefetched past the end by at most this: a prefetch never faults
#if defined(NYBBLE_ISA_AVX512)
  __m512i acc[4] = {};
  for (int64_t i = 0; i + 256 <= num_bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      __builtin_prefetch(data + i + j * 64 + kAhead, 0, 3);
      acc[j] = _mm512_xor_si512(acc[j], _mm512_loadu_si512(data + i + j * 64));
    }
  }
  for (int j = 0; j < 4; ++j) keep(acc[j]);
#else
  std::uint64_t acc[8] = {};
  for (int64_t i = 0; i + 64 <= num_bytes; i += 64) {
    __builtin_prefetch(data + i + kAhead, 0, 3);
    std::uint64_t words[8];
    std::memcpy(words, data + i, sizeof(words));
    for (int j = 0; j < 8; ++j) acc[j] ^= words[j];
  }
  for (int j = 0; j < 8; ++j) keep(acc[j]);
#endif
}

}  // namespace nybble::NYBBLE_ISA
