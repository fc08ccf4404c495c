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

}  // namespace nybble
