#pragma once
// Whether AMX may be used: processor, operating system, and a check that its products have the right bits.

#include <string>

#include "kernel_table.h"

namespace nybble {

/// "usable", or why not: "not in this build", "not in this processor", "not permitted by the operating system"; or
/// what holds of each kind of tiles, where they differ. Found out once; the first call asks for the permission.
const std::string& amx_status();

/// The kernels to use where AMX is usable, in part or altogether; else null.
const KernelTable* usable_amx_kernels();

/// Whether products on tiles have the bits of those in vectors, W4A4 and W4A16, on shapes with remainders: MXFP4
/// (int8 tiles) against AVX-512's, NVFP4 (bfloat16 tiles) against the same table's for single rows.
bool int8_tiles_agree(const KernelTable& table);
bool bfloat16_tiles_agree(const KernelTable& table);

}  // namespace nybble
