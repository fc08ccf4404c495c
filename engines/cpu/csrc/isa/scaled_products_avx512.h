#pragma once
// Sums of tiles on their way to the running sums of rows: scaled and added a few rows at a time.

#include "integer_rows.h"
#include "unroll.h"

namespace nybble::NYBBLE_ISA {

/// Sums of 32 rows (W4A4), or of 16 rows in two parts, and one or two panels. To be copied field by field only: a load
/// wider than the stores before it would wait for all stores under way.
template <int Panels, int Parts>
struct ScaledProducts {
  const float* scales = nullptr;  // of the rows
  float* sums = nullptr;          // [rows][Panels][16]
  int64_t num_rows = 0;
  __m512 quarters[Panels];  // of the weights

  /// For registers, around whose use memory is written.
  __attribute__((always_inline)) ScaledProducts local() const {
    ScaledProducts copy;
    copy.scales = scales;
    copy.sums = sums;
    copy.num_rows = num_rows;
    NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) copy.quarters[p] = quarters[p];
    return copy;
  }

  /// Rows [First, First + Count) of `products`, [tile of rows, or part][panel].
  template <int First, int Count>
  __attribute__((always_inline)) void add(const std::int32_t (*products)[16][16]) const {
    if (__builtin_expect(num_rows >= First + Count, 1)) {
      NYBBLE_UNROLL for (int r = First; r < First + Count; ++r) add_row(products, r);
    } else {
      for (int r = First; r < num_rows; ++r) add_row(products, r);
    }
  }

 private:
  __attribute__((always_inline)) void add_row(const std::int32_t (*products)[16][16], int r) const {
    const __m512 scale = _mm512_set1_ps(scales[r]);
    NYBBLE_UNROLL for (int p = 0; p < Panels; ++p) {
      __m512i sum = _mm512_load_si512(Parts == 1 ? products[r / 16 * 2 + p][r % 16] : products[2 + p][r]);
      if (Parts == 2) sum = _mm512_add_epi32(sum, _mm512_slli_epi32(_mm512_load_si512(products[p][r]), 8));
      float* out = sums + (r * Panels + p) * 16;
      _mm512_store_ps(out,
                      _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(quarters[p], scale), _mm512_load_ps(out)));
    }
  }
};

}  // namespace nybble::NYBBLE_ISA
