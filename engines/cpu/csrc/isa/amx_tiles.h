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

template <class Backend>
struct IntegerTiles {
  static void zero() {
    Backend::template zero<0>();
    Backend::template zero<1>();
    Backend::template zero<2>();
    Backend::template zero<3>();
  }

  /// 64 columns. Activation tiles begin at `first` and `second`, rows `row_bytes` apart; weight vectors of a panel are
  /// `vector_bytes` apart, panels 64.
  template <int Panels>
  static void multiply(const std::int8_t* first, const std::int8_t* second, int64_t row_bytes,
                       const std::uint8_t* weights, int64_t vector_bytes) {
    Backend::template load<6>(weights, vector_bytes);
    Backend::template load<4>(first, row_bytes);
    Backend::template dot_int8<0, 4, 6>();
    Backend::template load<5>(second, row_bytes);
    Backend::template dot_int8<2, 5, 6>();
    if constexpr (Panels == 2) {
      Backend::template load<7>(weights + 64, vector_bytes);
      Backend::template dot_int8<1, 4, 7>();
      Backend::template dot_int8<3, 5, 7>();
    }
  }

  template <int Panels>
  static void store(std::int32_t (*products)[16][16]) {
    Backend::template store<0>(products[0], 64);
    Backend::template store<2>(products[2], 64);
    if constexpr (Panels == 2) {
      Backend::template store<1>(products[1], 64);
      Backend::template store<3>(products[3], 64);
    }
  }
};

}  // namespace nybble::NYBBLE_ISA
