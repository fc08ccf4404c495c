#pragma once
// Tiles that take AMX's time and give zeros, a Backend of amx_tiles.h for builds that predict (NYBBLE_HOLLOW_TILES):
// what the AMX kernels would take on this machine if it had tiles. Nothing they compute means anything.
//
// Loads and stores of tiles are the same number of loads and stores of vectors: 2 and 1 a cycle. Products occupy one
// unit for 16 cycles each, beside everything else that the processor can find in its window: the chain below. A store
// waits for the products issued before it. Intel's optimization manual (AMX throughput and latency) has a product's
// latency as 52 cycles, of which the chain knows 16.
//
// The chain is a register of its own (-ffixed-r15) that holds the address of a word with that address: two loads of 5
// cycles and two multiplications of 3 each product.

#include "amx_tiles.h"

namespace nybble::NYBBLE_ISA {

namespace {

struct HollowChain {
  HollowChain* self = this;
  std::uint64_t saved = 0;  // the register's, which callers expect back
};

thread_local HollowChain t_chain;

struct HollowTileInstructions {
  static void configure(const TileConfig& config) {
    HollowChain* chain = &t_chain;
    asm volatile("movq %%r15, %0\n\tmovq %2, %%r15" : "=m"(chain->saved) : "m"(config), "r"(chain));
  }
  static void release() { asm volatile("movq %0, %%r15" : : "m"(t_chain.saved)); }

  template <int Tile>
  static void zero() {}

  template <int Tile>
  static void load(const void* base, int64_t stride) {
    const char* row = static_cast<const char*>(base);
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; ++i, row += stride) {
      __m512i loaded;
      asm volatile("vmovdqu64 %1, %0" : "=v"(loaded) : "m"(*reinterpret_cast<const char (*)[64]>(row)) : "memory");
    }
  }

  template <int Tile>
  static void store(void* base, int64_t stride) {
    __m512i zeros = _mm512_setzero_si512();
    asm volatile("vpbroadcastq %%r15, %%zmm16\n\tvpandq %%zmm16, %0, %0" : "+v"(zeros) : : "zmm16");
    char* row = static_cast<char*>(base);
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; ++i, row += stride) {
      asm volatile("vmovdqu64 %1, %0" : "=m"(*reinterpret_cast<char (*)[64]>(row)) : "v"(zeros) : "memory");
    }
  }

  template <int Sum, int A, int B>
  static void dot_int8() {
    asm volatile("movq (%%r15), %%r15\n\timulq $1, %%r15, %%r15\n\tmovq (%%r15), %%r15\n\timulq $1, %%r15, %%r15"
                 :
                 :
                 : "cc");
  }
  template <int Sum, int A, int B>
  static void dot_bfloat16() {
    dot_int8<Sum, A, B>();
  }
};

}  // namespace

}  // namespace nybble::NYBBLE_ISA
