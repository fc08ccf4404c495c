// Activations as bfloat16 tiles; the layout and the arithmetic are in bfloat16_rows.h.

#include "bfloat16_rows.h"

namespace nybble::NYBBLE_ISA {

namespace {

/// Even places the first block, odd places the second; both hold exact bfloat16 values.
inline void store_pairs(std::uint16_t* pairs, __m512 even, __m512 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd), _mm512_set1_epi32(static_cast<int>(0xffff0000U)));
  _mm512_store_si512(pairs, _mm512_or_si512(low, high));
}

inline __m512 code_values(const std::int8_t* codes, float scale) {
  const __m512i integers = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(0.5F * scale));
}

}  // namespace

void tile_rows_w4a4(const W4A4Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t num_blocks = num_columns / 16;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const std::int8_t* codes = args.codes + row * num_columns;
    const float* scales = args.scales + row * num_blocks;
    bool fits = true;
    for (int64_t b = 0; b < num_blocks; b += 16) fits = fits && all_e4m3(scales + b, min64(16, num_blocks - b));
    rows.fits[row] = fits;
    for (int64_t b = 0; b < num_blocks; b += 2) {
      const __m512 odd = b + 1 < num_blocks ? code_values(codes + (b + 1) * 16, scales[b + 1]) : _mm512_setzero_ps();
      store_pairs(tile_row(rows, row, b / 2), code_values(codes + b * 16, scales[b]), odd);
    }
  }
}

void tile_rows_w4a16(const Fp4F32Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end) {
  const int64_t num_columns = args.weight.num_columns;
  const int64_t num_blocks = num_columns / 16;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = args.x + row * num_columns;
    bool fits = true;
    for (int64_t b = 0; b < num_blocks; b += 2) {
      const BlockIntegers even = block_integers(x + b * 16);
      fits = fits && even.moderate;
      __m512 odd_values = _mm512_setzero_ps();
      if (b + 1 < num_blocks) {
        const BlockIntegers odd = block_integers(x + (b + 1) * 16);
        fits = fits && odd.moderate;
        odd_values = integer_values(odd);
      }
      store_pairs(tile_row(rows, row, b / 2), integer_values(even), odd_values);
    }
    rows.fits[row] = fits;
  }
}

}  // namespace nybble::NYBBLE_ISA
