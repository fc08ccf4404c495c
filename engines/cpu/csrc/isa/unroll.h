#pragma once
// Loops over the registers of a tile, which have to be unrolled.

#if defined(__SANITIZE_ADDRESS__)  // compiles for many minutes otherwise
#define NYBBLE_UNROLL
#else
#define NYBBLE_UNROLL _Pragma("GCC unroll 32")
#endif
