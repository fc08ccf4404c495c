#pragma once
// Which instruction set a source is compiled for: a namespace of its own for each.
//
// Everything is static inline inside a per-ISA namespace, and per-ISA sources use no standard library templates: a
// template instantiated here with wide instructions could otherwise be the copy the linker keeps for everyone.

#include <cstdint>

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

}  // namespace nybble::NYBBLE_ISA
