#include "kernels.h"

#define NYBBLE_STRING_(x) #x
#define NYBBLE_STRING(x) NYBBLE_STRING_(x)
#define NYBBLE_JOIN_(a, b) a##b
#define NYBBLE_JOIN(a, b) NYBBLE_JOIN_(a, b)

namespace nybble {

namespace {

namespace isa = NYBBLE_ISA;

constexpr KernelTable kTable = {
    .name = NYBBLE_STRING(NYBBLE_ISA),
#if defined(NYBBLE_ISA_AVX512)
    .w4a4_biases = nullptr,
    .fp4_linear_w4a4 = nullptr,
    .prepare_w4a4 = isa::prepare_w4a4,
    .prepare_w4a16 = isa::prepare_w4a16,
    .fp4_linear_integer = isa::fp4_linear_integer,
    .fp4_linear_few_rows = isa::fp4_linear_few_rows,
#else
    .w4a4_biases = isa::w4a4_biases,
    .fp4_linear_w4a4 = isa::fp4_linear_w4a4,
    .prepare_w4a4 = nullptr,
    .prepare_w4a16 = nullptr,
    .fp4_linear_integer = nullptr,
    .fp4_linear_few_rows = nullptr,
#endif
    .fp4_linear_f32 = isa::fp4_linear_f32,
    .dense_linear = isa::dense_linear,
    .quantize_mxfp4 = isa::quantize_mxfp4,
    .quantize_nvfp4 = isa::quantize_nvfp4,
    .rms_norm = isa::rms_norm,
    .rope = isa::rope,
    .silu_mul = isa::silu_mul,
    .softmax_row = isa::softmax_row,
    .add_scaled = isa::add_scaled,
    .to_float32 = isa::to_float32,
    .kv_write = isa::kv_write,
    .attention = isa::attention,
    .attention_finish = isa::attention_finish,
    .limit_operations = isa::limit_operations,
    .read_memory = isa::read_memory,
};

}  // namespace

const KernelTable* NYBBLE_JOIN(NYBBLE_ISA, _kernels)() { return &kTable; }

#if defined(NYBBLE_ISA_AVX512)

namespace {

constexpr KernelTable with_tiles(const char* name, decltype(KernelTable::fp4_linear_integer) linear,
                                 decltype(KernelTable::limit_operations) limits) {
  KernelTable table = kTable;
  table.name = name;
  table.fp4_linear_integer = linear;
  table.limit_operations = limits;
  return table;
}

constexpr KernelTable kAmxTable = with_tiles("amx", isa::fp4_linear_amx, isa::limit_operations_amx);
constexpr KernelTable kEmulatedTable = with_tiles("amx-emulated", isa::fp4_linear_amx_emulated, isa::limit_operations);

}  // namespace

const KernelTable* amx_kernels() { return &kAmxTable; }
const KernelTable* amx_emulated_kernels() { return &kEmulatedTable; }

#endif

}  // namespace nybble
