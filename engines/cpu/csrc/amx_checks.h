#pragma once
// What kernels on tiles must give before they may be used: the bits they have elsewhere.

#include "kernel_table.h"

namespace nybble {

/// Whether products on tiles have the bits of those in vectors, W4A4 and W4A16, on shapes with remainders: MXFP4
/// (int8 tiles) against AVX-512's, NVFP4 (bfloat16 tiles) against the same table's for single rows.
bool int8_tiles_agree(const KernelTable& table);
bool bfloat16_tiles_agree(const KernelTable& table);

/// Whether attention on tiles has the bits that it has on emulated ones: many queries and few, with and without a
/// sliding window.
bool attention_tiles_agree(const KernelTable& table);

}  // namespace nybble
