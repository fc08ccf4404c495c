#pragma once
// The scales of a tile's keys and values in an E4M3 cache. They are powers of two: products run on the numbers without
// them, then a key's scale goes into its score, a value's into its weight.

#include "float_bits.h"
#include "kv_rows.h"

namespace nybble::NYBBLE_ISA {

/// Scale bytes of a tile's positions; 0 where nobody looks.
struct TileScaleBytes {
  std::uint8_t keys[kAttentionTileKeys];
  std::uint8_t values[kAttentionTileKeys];
};

/// Scales of positions [begin, end) of the tile that starts at position `start`.
static inline void find_scales(const KvCache& cache, const std::int32_t* block_table, int64_t kv_head, int64_t start,
                               int64_t begin, int64_t end, TileScaleBytes& out) {
  std::memset(&out, 0, sizeof(out));
  int64_t block = (start + begin) / cache.block_size;
  int64_t in_block = (start + begin) % cache.block_size;
  for (int64_t j = begin; j < end; ++block, in_block = 0) {
    const int64_t offset = head_scales_offset(cache, block_table[block], kv_head) + in_block;
    const int64_t count = min64(cache.block_size - in_block, end - j);
    std::memcpy(out.keys + j, static_cast<const std::uint8_t*>(cache.k) + offset, static_cast<std::size_t>(count));
    std::memcpy(out.values + j, static_cast<const std::uint8_t*>(cache.v) + offset, static_cast<std::size_t>(count));
    j += count;
  }
}

/// 2^8 times the scales of sixteen bytes, as the numbers are read as 2^-8 times their value (e4m3.h).
static inline void widen_scales(const std::uint8_t* bytes, float* scales) {
#if defined(NYBBLE_ISA_AVX512)
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(wide, _mm512_set1_epi32(8)), 23);
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(wide, _mm512_set1_epi32(kNanScale));
  _mm512_storeu_si512(scales, _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
#else
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t bits = (static_cast<std::uint32_t>(bytes[i]) + 8U) << 23;
    scales[i] = bits_to_float(bytes[i] == kNanScale ? 0x7fc00000U : bits);
  }
#endif
}

/// The least weights whose product with the value's scale is a normal number.
static inline void find_least_weights(const std::uint8_t* bytes, float* weights) {
#if defined(NYBBLE_ISA_AVX512)
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  const __m512i exponent = _mm512_max_epi32(_mm512_sub_epi32(_mm512_set1_epi32(120), wide), _mm512_setzero_si512());
  _mm512_storeu_si512(weights, _mm512_slli_epi32(exponent, 23));
#else
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t exponent = bytes[i] < 120 ? 120U - bytes[i] : 0U;
    weights[i] = bits_to_float(exponent << 23);
  }
#endif
}

/// For raise_largest and weigh: scores and weights of a tile are what they are.
struct Unscaled {
  static constexpr bool kAreScaled = false;
};

/// The same where they take the scales of their positions. A weight whose product would be subnormal counts as 0 in
/// the sums over values, not in the total: what it stands for is below 2^-117, and a multiply-add of a subnormal number
/// takes a processor over a hundred cycles.
struct TileScales {
  static constexpr bool kAreScaled = true;
  alignas(64) float keys[kAttentionTileKeys];
  alignas(64) float values[kAttentionTileKeys];
  alignas(64) float least[kAttentionTileKeys];

  /// Positions j to j + 15.
  void widen(const std::uint8_t* key_bytes, const std::uint8_t* value_bytes, int64_t j) {
    widen_scales(key_bytes, keys + j);
    widen_scales(value_bytes, values + j);
    find_least_weights(value_bytes, least + j);
  }
  F16 scores(F16 unscaled, int64_t j) const { return unscaled * load(keys + j); }
  F16 weights(F16 unscaled, int64_t j) const { return zero_below(unscaled, load(least + j)) * load(values + j); }
};

/// Scales of a tile's keys and values, where the cache has any.
template <ElementType Type>
static inline auto scales_of(const TileScaleBytes& bytes) {
  if constexpr (Type == ElementType::kFloat8E4m3) {
    TileScales scales;
    for (int64_t j = 0; j < kAttentionTileKeys; j += 16) scales.widen(bytes.keys + j, bytes.values + j, j);
    return scales;
  } else {
    return Unscaled{};
  }
}

}  // namespace nybble::NYBBLE_ISA
