#pragma once
// One float from and to bits: its own, bfloat16's, float16's.

#include <cstring>

#include "instruction_set.h"

namespace nybble::NYBBLE_ISA {

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

}  // namespace nybble::NYBBLE_ISA
