#pragma once
// What the bfloat16 tiles of attention read: queries and weights as two bfloat16 numbers each, keys and values in
// pairs.

#include "attention_queries.h"
#include "kv_tiles.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

/// 32 values, each the sum of kFloatParts bfloat16 numbers that lie `stride` elements apart: the leading 8 bits, the
/// next 8 and the last.
static inline void store_parts(F16 first, F16 second, std::uint16_t* out, int64_t stride) {
  const __m512i high_words = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                              27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  for (int64_t part = 0; part < kFloatParts; ++part, out += stride) {
    const __m512i first_bits = _mm512_castps_si512(first.v);
    const __m512i second_bits = _mm512_castps_si512(second.v);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first_bits, high_words, second_bits));
    first = first - F16{_mm512_castsi512_ps(_mm512_and_si512(first_bits, high))};
    second = second - F16{_mm512_castsi512_ps(_mm512_and_si512(second_bits, high))};
  }
}

/// Query vectors times scale and log2(e) -> [kFloatParts][queries, up][head_dim].
static inline void load_query_parts(const Queries& queries, std::uint16_t* out) {
  const F16 scale = splat(queries.args.scale * kLog2E);
  const int64_t head_dim = queries.args.cache.head_dim;
  const int64_t part = round_up_to_lanes(queries.count) * head_dim;
  std::memset(out, 0, static_cast<std::size_t>(kFloatParts * part) * sizeof(*out));
  for (int64_t i = 0; i < queries.count; ++i) {
    const float* source = queries.args.q + queries.offset(i / queries.group) + i % queries.group * head_dim;
    for (int64_t d = 0; d < head_dim; d += 32) {
      store_parts(load(source + d) * scale, load(source + d + 16) * scale, out + i * head_dim + d, part);
    }
  }
}

/// Weights of the queries that see anything -> [kFloatParts][num_padded][kAttentionTileKeys], 0 where a query does not
/// see.
static inline void split_weights(const TileView& view, const float* weights, int64_t num_padded, std::uint16_t* out) {
  const Range active = view.queries();
  for (int64_t i = active.begin; i < active.end; ++i) {
    const Range seen = view.of(i);
    const auto load_seen = [&](int64_t j) {
      if (j >= seen.end || j + 16 <= seen.begin) return splat(0.0F);
      return select_lanes(load(weights + i * kAttentionTileKeys + j), splat(0.0F), seen.begin - j, seen.end - j);
    };
    for (int64_t j = 0; j < kAttentionTileKeys; j += 32) {
      store_parts(load_seen(j), load_seen(j + 16), out + i * kAttentionTileKeys + j, num_padded * kAttentionTileKeys);
    }
  }
}

/// Sixteen pairs of elements as bfloat16, exactly; E4M3 numbers as load_pairs() has them.
template <ElementType Type>
static inline __m512i load_bfloat16_pairs(const std::uint8_t* pairs) {
  if constexpr (Type == ElementType::kBfloat16) return _mm512_loadu_si512(pairs);
  const __m512i even = _mm512_castps_si512(load_pairs<Type, false>(pairs).v);
  const __m512i odd = _mm512_castps_si512(load_pairs<Type, true>(pairs).v);
  return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
}

/// Keys of sixteen positions from their rows -> [head_dim / 2][16][2] bfloat16, as groups hold them.
template <ElementType Type>
static inline void group_keys(const std::uint8_t* const* rows, int64_t head_dim, std::uint16_t* out) {
  for (int64_t d = 0; d < head_dim; d += 32) {
    __m512i lanes[16];
    for (int j = 0; j < 16; ++j) lanes[j] = load_bfloat16_pairs<Type>(rows[j] + d * element_bytes(Type));
    transpose_lanes(lanes);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (d / 2 + i) * 32, lanes[i]);
  }
}

/// Values of positions as bfloat16, those before `begin` and from `end` on as zeros ->
/// [kAttentionTileKeys / 2][head_dim / 32][2 halves][16][2]: pairs of positions, the even dimensions of 32 before the
/// odd ones.
class ValuePairs {
 public:
  ValuePairs(int64_t head_dim, std::uint16_t* out) : head_dim_(head_dim), out_(out) {}

  /// Packs all steps of 32 positions that [begin, end) touches; whether all of these values are finite. `load(j, d)`:
  /// dimensions [d, d + 32) of position j.
  template <class Load>
  bool pack(Range positions, const Load& load) const {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __m512i largest = _mm512_setzero_si512();
    const auto load_row = [&](int64_t j, int64_t d) {
      if (j < positions.begin || j >= positions.end) return _mm512_setzero_si512();
      const __m512i row = load(j, d);
      largest = _mm512_max_epu16(largest, _mm512_and_si512(row, exponent));
      return row;
    };
    for (int64_t j = positions.begin / 32 * 32; j < (positions.end + 31) / 32 * 32; j += 2) {
      for (int64_t d = 0; d < head_dim_; d += 32) {
        const __m512i first = load_row(j, d);
        const __m512i second = load_row(j + 1, d);
        std::uint16_t* target = out_ + j * head_dim_ + 2 * d;
        _mm512_storeu_si512(target, _mm512_mask_blend_epi16(kHigh, first, _mm512_slli_epi32(second, 16)));
        _mm512_storeu_si512(target + 32, _mm512_mask_blend_epi16(kHigh, _mm512_srli_epi32(first, 16), second));
      }
    }
    return _mm512_cmpeq_epi16_mask(largest, exponent) == 0;
  }

 private:
  static constexpr __mmask32 kHigh = 0xaaaaaaaaU;

  int64_t head_dim_;
  std::uint16_t* out_;
};

}  // namespace nybble::NYBBLE_ISA
