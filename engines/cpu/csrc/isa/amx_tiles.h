#pragma once
// Eight tile registers of 16 rows x 64 bytes, used as the integer product uses them:
//   tmm0..3 sums, 16 rows x 16 int32: [activation tile a][panel p] in tmm(2a + p)
//   tmm4, 5 activations, 16 rows x 64 signed bytes
//   tmm6, 7 weights of a panel, 16 rows of 4 columns x 16 outputs x signed byte
// `Backend` has the instructions: Intel's, or the emulation in amx_emulation.h that runs anywhere.

#include "simd.h"

namespace nybble::NYBBLE_ISA {

/// What LDTILECFG reads.
struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// `num_rows` rows of sums and of the left-hand side (tmm0 to 5), 16 of the right-hand side.
inline TileConfig tiles_of_rows(int num_rows) {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? num_rows : 16);
  }
  return config;
}

inline TileConfig full_tiles() { return tiles_of_rows(16); }

/// `A`: tile of activations, `P`: panel.
template <class Backend>
struct IntegerTiles {
  template <int A, int P>
  static void zero() {
    Backend::template zero<2 * A + P>();
  }
  template <int A, int P>
  static void store(std::int32_t (*products)[16][16]) {
    Backend::template store<2 * A + P>(products[2 * A + P], 64);
  }
  /// 64 columns of 16 rows that lie `row_bytes` apart.
  template <int A>
  static void load_activations(const std::int8_t* first, int64_t row_bytes) {
    Backend::template load<4 + A>(first, row_bytes);
  }
  /// 64 columns, vectors of 4 columns x 16 outputs that lie `vector_bytes` apart.
  template <int P>
  static void load_weights(const std::uint8_t* first, int64_t vector_bytes) {
    Backend::template load<6 + P>(first, vector_bytes);
  }
  template <int A, int P>
  static void multiply() {
    Backend::template dot_int8<2 * A + P, 4 + A, 6 + P>();
  }
};

}  // namespace nybble::NYBBLE_ISA
