#pragma once
// Whether AMX may be used: processor, operating system, and a check that its products have the right bits.

#include <string>

#include "kernel_table.h"

namespace nybble {

/// "usable", or why not: "not in this build", "not in this processor", "not permitted by the operating system",
/// "failed its self-check". Found out once; the first call asks the kernel for the permission.
const std::string& amx_status();

/// Whether the integer products of `table` have the bits of AVX-512's: W4A4 and W4A16, shapes with remainders.
bool passes_self_check(const KernelTable& table);

}  // namespace nybble
