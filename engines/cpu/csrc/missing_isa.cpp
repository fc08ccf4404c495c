// Stand-ins for instruction sets this build's target does not have.

#include "kernel_table.h"

namespace nybble {

const KernelTable* avx2_kernels() { return nullptr; }
const KernelTable* avx512_kernels() { return nullptr; }
const KernelTable* amx_kernels(bool, bool) { return nullptr; }
const KernelTable* avx512_zen_kernels() { return nullptr; }
const KernelTable* avx512_vnni_kernels() { return nullptr; }
const KernelTable* amx_emulated_kernels() { return nullptr; }

}  // namespace nybble
