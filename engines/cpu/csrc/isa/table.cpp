#include "kernels.h"

#define NYBBLE_STRING_(x) #x
#define NYBBLE_STRING(x) NYBBLE_STRING_(x)
#define NYBBLE_JOIN_(a, b) a##b
#define NYBBLE_JOIN(a, b) NYBBLE_JOIN_(a, b)

namespace nybble {

const KernelTable* NYBBLE_JOIN(NYBBLE_ISA, _kernels)() {
  namespace isa = NYBBLE_ISA;
  static constexpr KernelTable kTable = {
      NYBBLE_STRING(NYBBLE_ISA), isa::w4a4_biases,    isa::fp4_linear_w4a4, isa::fp4_linear_f32, isa::dense_linear,
      isa::quantize_mxfp4,       isa::quantize_nvfp4, isa::rms_norm,        isa::rope,           isa::silu_mul,
      isa::softmax_row,          isa::add_scaled,     isa::to_float32,      isa::kv_write,       isa::attention,
      isa::limit_operations,     isa::read_memory,
  };
  return &kTable;
}

}  // namespace nybble
