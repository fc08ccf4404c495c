#pragma once
// Tile registers in software, operation by operation as Intel's manual (Instruction Set Reference: LDTILECFG,
// TILELOADD, TILESTORED, TILEZERO, TDPBSSD, TDPBF16PS) describes them, with its fault conditions as a trap. It lets the
// AMX kernels be tested bit for bit on processors without AMX. Each thread has its own registers, as in hardware.

#include "amx_tiles.h"
#include "float_bits.h"

namespace nybble::NYBBLE_ISA {

namespace {

struct TileRegisters {
  bool configured = false;
  TileConfig config;
  std::uint8_t data[8][16][64];
};

thread_local TileRegisters t_tiles;

// Never inlined: speed is no concern here, and the sanitizers' builds take minutes longer otherwise.

/// #UD or #GP on hardware: the kernel is wrong, and must not go on.
inline void fault_unless(bool holds) {
  if (!holds) __builtin_trap();
}

struct EmulatedTileInstructions {
  __attribute__((noinline)) static void configure(const TileConfig& config) {
    fault_unless(config.palette == 1 && config.start_row == 0);
    for (int tile = 0; tile < 16; ++tile) {
      const bool used = config.rows[tile] != 0 && config.row_bytes[tile] != 0;
      fault_unless(tile < 8 || (config.rows[tile] == 0 && config.row_bytes[tile] == 0));
      fault_unless(used || (config.rows[tile] == 0 && config.row_bytes[tile] == 0));
      fault_unless(config.rows[tile] <= 16 && config.row_bytes[tile] <= 64);
    }
    t_tiles.configured = true;
    t_tiles.config = config;
    std::memset(t_tiles.data, 0, sizeof(t_tiles.data));
  }

  static void release() { t_tiles.configured = false; }

  template <int Tile>
  __attribute__((noinline)) static void zero() {
    fault_unless(t_tiles.configured && t_tiles.config.rows[Tile] != 0);
    std::memset(t_tiles.data[Tile], 0, sizeof(t_tiles.data[Tile]));
  }

  template <int Tile>
  __attribute__((noinline)) static void load(const void* base, int64_t stride) {
    zero<Tile>();  // rows and bytes past the configured ones become zero
    for (int row = 0; row < t_tiles.config.rows[Tile]; ++row) {
      std::memcpy(t_tiles.data[Tile][row], static_cast<const std::uint8_t*>(base) + row * stride,
                  t_tiles.config.row_bytes[Tile]);
    }
  }

  template <int Tile>
  __attribute__((noinline)) static void store(void* base, int64_t stride) {
    fault_unless(t_tiles.configured && t_tiles.config.rows[Tile] != 0);
    for (int row = 0; row < t_tiles.config.rows[Tile]; ++row) {
      std::memcpy(static_cast<std::uint8_t*>(base) + row * stride, t_tiles.data[Tile][row],
                  t_tiles.config.row_bytes[Tile]);
    }
  }

  /// TDPBSSD: sum[m][n] += signed bytes 4k..4k+3 of a's row m times those of dword n in b's row k, for ascending k.
  template <int Sum, int A, int B>
  __attribute__((noinline)) static void dot_int8() {
    static_assert(Sum != A && Sum != B && A != B);  // equal operands fault
    const TileConfig& config = t_tiles.config;
    fault_unless(t_tiles.configured && config.row_bytes[Sum] % 4 == 0 && config.row_bytes[A] % 4 == 0);
    fault_unless(config.rows[A] == config.rows[Sum] && config.row_bytes[B] == config.row_bytes[Sum]);
    fault_unless(config.row_bytes[A] / 4 == config.rows[B]);
    for (int m = 0; m < config.rows[Sum]; ++m) {
      std::int32_t sums[16];
      std::memcpy(sums, t_tiles.data[Sum][m], sizeof(sums));
      for (int k = 0; k < config.row_bytes[A] / 4; ++k) {
        for (int n = 0; n < config.row_bytes[Sum] / 4; ++n) {
          for (int i = 0; i < 4; ++i) {
            const auto a = static_cast<std::int8_t>(t_tiles.data[A][m][4 * k + i]);
            const auto b = static_cast<std::int8_t>(t_tiles.data[B][k][4 * n + i]);
            sums[n] =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[n]) + static_cast<std::uint32_t>(a * b));
          }
        }
      }
      std::memcpy(t_tiles.data[Sum][m], sums, static_cast<std::size_t>(config.row_bytes[Sum]));
    }
  }

  /// TDPBF16PS: for ascending k, chain i (0 and 1) of sum[m][n] takes bfloat16 2k+i of a's row m times 2n+i of b's row
  /// k by a fused multiply-add; then the chains are added, and that to sum[m][n]. Subnormal operands and results are
  /// zero.
  template <int Sum, int A, int B>
  __attribute__((noinline)) static void dot_bfloat16() {
    static_assert(Sum != A && Sum != B && A != B);
    const TileConfig& config = t_tiles.config;
    fault_unless(t_tiles.configured && config.row_bytes[Sum] % 4 == 0 && config.row_bytes[A] % 4 == 0);
    fault_unless(config.rows[A] == config.rows[Sum] && config.row_bytes[B] == config.row_bytes[Sum]);
    fault_unless(config.row_bytes[A] / 4 == config.rows[B]);
    for (int m = 0; m < config.rows[Sum]; ++m) {
      F16 chains[2] = {splat(0.0F), splat(0.0F)};
      for (int k = 0; k < config.row_bytes[A] / 4; ++k) {
        const __m512i pairs = _mm512_loadu_si512(t_tiles.data[B][k]);
        for (int i = 0; i < 2; ++i) {
          std::uint16_t a;
          std::memcpy(&a, t_tiles.data[A][m] + 4 * k + 2 * i, sizeof(a));
          const __m512i high = i == 0 ? _mm512_slli_epi32(pairs, 16) : pairs;
          const __m512i b = _mm512_and_si512(high, _mm512_set1_epi32(static_cast<int>(0xffff0000U)));
          chains[i] =
              flushed(fma(flushed(splat(bfloat16_to_float(a))), flushed(F16{_mm512_castsi512_ps(b)}), chains[i]));
        }
      }
      F16 sum = flushed(F16{_mm512_loadu_ps(t_tiles.data[Sum][m])});
      sum = flushed(sum + flushed(chains[0] + chains[1]));
      const auto lanes = static_cast<__mmask16>((1U << config.row_bytes[Sum] / 4) - 1U);
      _mm512_mask_storeu_ps(t_tiles.data[Sum][m], lanes, sum.v);
    }
  }

 private:
  static F16 flushed(F16 values) {
    const __m512i bits = _mm512_castps_si512(values.v);
    const __mmask16 subnormal = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000U));
    return {_mm512_castsi512_ps(_mm512_mask_and_epi32(bits, subnormal, bits, sign))};
  }
};

}  // namespace

}  // namespace nybble::NYBBLE_ISA
