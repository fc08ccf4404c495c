#pragma once
// Tiles of keys and values as the products want them: float32, keys transposed.
//
// Reading one tile asks for the next one, line by line in the order of its rows: blocks lie anywhere in memory, but in
// that order the prefetcher of the processor follows inside a block.

#include "kv_groups.h"

namespace nybble::NYBBLE_ISA {

/// The rows, or groups, to read after those in hand.
class Ahead {
 public:
  Ahead(const std::uint8_t* const* rows, int64_t num_rows, int64_t row_bytes)
      : rows_(rows), num_rows_(num_rows), row_bytes_(row_bytes) {}

  /// To be called for every part of a row that is read, `byte` bytes from its begin: asks for one line a line.
  void fetch(int64_t byte) {
    if (byte % 64 != 0 || row_ >= num_rows_) return;
    __builtin_prefetch(rows_[row_] + byte_, 0, 2);
    for (byte_ += 64; byte_ >= row_bytes_; byte_ -= row_bytes_) ++row_;
  }

 private:
  const std::uint8_t* const* rows_;
  int64_t num_rows_;
  int64_t row_bytes_;
  int64_t row_ = 0;
  int64_t byte_ = 0;
};

#if defined(NYBBLE_ISA_AVX512)

/// Sixteen rows of sixteen 32-bit lanes, in place.
static inline void transpose_lanes(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  // r[4 g + c]: 128-bit part L holds column 4 L + c of rows 4 g to 4 g + 3.
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i even_rest = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i odd_rest = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(even, even_rest, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(odd, odd_rest, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(even, even_rest, 0xdd);
    t[12 + c] = _mm512_shuffle_i32x4(odd, odd_rest, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

static inline void transpose(const F16 (&rows)[16], float* out) {
  __m512i lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = _mm512_castps_si512(rows[i].v);
  transpose_lanes(lanes);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * kAttentionTileKeys, lanes[i]);
}

/// bfloat16 keys are transposed as pairs of dimensions: half the shuffles.
static inline void pack_bfloat16_keys(const TileRows& tile, int64_t first_key, int64_t head_dim, int64_t begin,
                                      int64_t end, Ahead& ahead, float* out) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  for (int64_t d = begin; d < end; d += 32) {
    const __mmask32 present = head_dim - d >= 32 ? 0xffffffffU : (1U << (head_dim - d)) - 1U;
    __m512i lanes[16];
    for (int j = 0; j < 16; ++j) {
      lanes[j] = _mm512_maskz_loadu_epi16(present, tile.rows[first_key + j] + 2 * d);
      ahead.fetch(2 * d);
    }
    transpose_lanes(lanes);
    const int64_t num_pairs = min64(16, (end - d) / 2);
    for (int i = 0; i < num_pairs; ++i) {
      float* pair = out + (d + 2 * i) * kAttentionTileKeys + first_key;
      _mm512_storeu_si512(pair, _mm512_slli_epi32(lanes[i], 16));
      _mm512_storeu_si512(pair + kAttentionTileKeys, _mm512_and_si512(lanes[i], high));
    }
  }
}

#else

/// Sixteen rows of sixteen lanes -> rows of `out`, kAttentionTileKeys apart.
static inline void transpose(const F16 (&rows)[16], float* out) {
  alignas(64) float from[16][16];
  for (int i = 0; i < 16; ++i) store(from[i], rows[i]);
  typedef float Four __attribute__((vector_size(16)));
  const auto four = [&](int row, int column) {
    Four value;
    std::memcpy(&value, &from[row][column], sizeof(value));
    return value;
  };
  for (int d = 0; d < 16; d += 4) {
    for (int j = 0; j < 16; j += 4) {
      const Four a = four(j, d), b = four(j + 1, d), c = four(j + 2, d), e = four(j + 3, d);
      const Four ab_low{a[0], b[0], a[1], b[1]}, ab_high{a[2], b[2], a[3], b[3]};
      const Four ce_low{c[0], e[0], c[1], e[1]}, ce_high{c[2], e[2], c[3], e[3]};
      const Four columns[4] = {{ab_low[0], ab_low[1], ce_low[0], ce_low[1]},
                               {ab_low[2], ab_low[3], ce_low[2], ce_low[3]},
                               {ab_high[0], ab_high[1], ce_high[0], ce_high[1]},
                               {ab_high[2], ab_high[3], ce_high[2], ce_high[3]}};
      for (int i = 0; i < 4; ++i) std::memcpy(out + (d + i) * kAttentionTileKeys + j, &columns[i], sizeof(Four));
    }
  }
}

#endif

/// Dimensions [begin, end) of the keys of vectors [first_vector, last_vector) -> out [stride][kAttentionTileKeys].
template <ElementType Type>
static inline void pack_keys(const TileRows& tile, int64_t first_vector, int64_t last_vector, int64_t head_dim,
                             int64_t begin, int64_t end, Ahead& ahead, float* out) {
  for (int64_t first_key = 16 * first_vector; first_key < 16 * last_vector; first_key += 16) {
#if defined(NYBBLE_ISA_AVX512)
    if constexpr (Type == ElementType::kBfloat16) {
      pack_bfloat16_keys(tile, first_key, head_dim, begin, end, ahead, out);
      continue;
    }
#endif
    for (int64_t d = begin; d < end; d += 16) {
      F16 rows[16];
      for (int j = 0; j < 16; ++j) {
        rows[j] = load_elements<Type>(tile, first_key + j, d, head_dim);
        ahead.fetch(d * element_bytes(Type));
      }
      transpose(rows, out + d * kAttentionTileKeys + first_key);
    }
  }
}

/// Dimensions [begin, end) of the keys of groups [first, last) -> out [stride][kAttentionTileKeys].
template <ElementType Type>
static inline void pack_key_groups(const std::uint8_t* const* groups, int64_t first, int64_t last, int64_t begin,
                                   int64_t end, Ahead& ahead, float* out) {
  constexpr int64_t kPairBytes = 2 * kKeyGroup * element_bytes(Type);
  for (int64_t g = first; g < last; ++g) {
    for (int64_t d = begin; d < end; d += 2) {
      const std::uint8_t* pairs = groups[g] + d / 2 * kPairBytes;
      float* target = out + d * kAttentionTileKeys + g * kKeyGroup;
      store(target, load_pairs<Type, false>(pairs));
      store(target + kAttentionTileKeys, load_pairs<Type, true>(pairs));
      ahead.fetch(d / 2 * kPairBytes);
    }
  }
}

/// Values of positions [begin, end) -> out [kAttentionTileKeys][stride], the even dimensions of 32 before the odd ones.
template <ElementType Type>
static inline void pack_value_pairs(const TileRows& tile, int64_t begin, int64_t end, int64_t stride, Ahead& ahead,
                                    float* out) {
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t d = 0; d < stride; d += 32) {
      const std::uint8_t* pairs = tile.rows[j] + d * element_bytes(Type);
      store(out + j * stride + d, load_pairs<Type, false>(pairs));
      store(out + j * stride + d + 16, load_pairs<Type, true>(pairs));
      ahead.fetch(d * element_bytes(Type));
    }
  }
}

/// Values of positions [begin, end) -> out [kAttentionTileKeys][stride].
template <ElementType Type>
static inline void pack_values(const TileRows& tile, int64_t begin, int64_t end, int64_t head_dim, int64_t stride,
                               Ahead& ahead, float* out) {
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t d = 0; d < stride; d += 16) {
      store(out + j * stride + d, load_elements<Type>(tile, j, d, head_dim));
      ahead.fetch(d * element_bytes(Type));
    }
  }
}

}  // namespace nybble::NYBBLE_ISA
