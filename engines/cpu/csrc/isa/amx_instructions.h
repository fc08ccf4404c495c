#pragma once
// Intel's instructions for tile registers, a Backend of amx_tiles.h. To be run only where isa.cpp found AMX, the
// operating system's permission and a passed self-check.

#include "amx_tiles.h"
#if defined(NYBBLE_HOLLOW_TILES)
#include "hollow_tiles.h"
#endif

namespace nybble::NYBBLE_ISA {

namespace {

#if defined(NYBBLE_HOLLOW_TILES)
using HardwareTileInstructions = HollowTileInstructions;
#else

// Written out: GCC's intrinsics paste the text of a tile's number into the instruction, which a template parameter is
// not, and its _tile_loadconfig declares that it reads 8 bytes only (GCC 12), so that stores to the rest may be
// dropped.
struct HardwareTileInstructions {
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  static void release() { asm volatile("tilerelease"); }

  template <int Tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  template <int Tile>
  static void load(const void* base, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  static void store(void* base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(Tile) : "memory");
  }
  /// Sum += A x B. In this syntax the operands stand in reverse.
  template <int Sum, int A, int B>
  static void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
  template <int Sum, int A, int B>
  static void dot_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
};

#endif

}  // namespace

}  // namespace nybble::NYBBLE_ISA
