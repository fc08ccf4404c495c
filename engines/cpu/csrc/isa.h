#pragma once
// Run-time choice of the instruction set.

#include <string>
#include <vector>

#include "kernel_table.h"

namespace nybble {

/// The table in use: the best this processor supports, or what NYBBLE_CPU_ISA or set_isa() named.
const KernelTable& kernels();

/// Names this build and processor can run, best first.
std::vector<std::string> available_isas();

/// Throws std::invalid_argument naming the choices. Beside them, "amx-emulated" is the AMX kernels on tiles in
/// software, for tests, wherever AVX-512 is.
void set_isa(const std::string& name);

}  // namespace nybble
