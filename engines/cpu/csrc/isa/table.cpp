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
    .vbmi = true,
    .reading = kReadInSteps,
    .prepare_screen_row = isa::prepare_screen_row,
    .screen_outputs = isa::screen_outputs,
#else
    .w4a4_biases = isa::w4a4_biases,
    .fp4_linear_w4a4 = isa::fp4_linear_w4a4,
    .prepare_w4a4 = nullptr,
    .prepare_w4a16 = nullptr,
    .fp4_linear_integer = nullptr,
    .vbmi = false,
    .reading = {},
    .prepare_screen_row = nullptr,
    .screen_outputs = nullptr,
#endif
    .fp4_linear_tiles = nullptr,
    .tile_rows_w4a4 = nullptr,
    .tile_rows_w4a16 = nullptr,
    .fp4_linear_bfloat16 = nullptr,
    .fp4_linear_f32 = isa::fp4_linear_f32,
    .dense_linear = isa::dense_linear,
    .quantize_mxfp4 = isa::quantize_mxfp4,
    .quantize_nvfp4 = isa::quantize_nvfp4,
    .rms_norm = isa::rms_norm,
    .rope = isa::rope,
    .silu_mul = isa::silu_mul,
    .softmax_row = isa::softmax_row,
    .logits_peak = isa::logits_peak,
    .token_weights = isa::token_weights,
    .add_scaled = isa::add_scaled,
    .to_float32 = isa::to_float32,
    .kv_write = isa::kv_write,
    .attention = isa::attention,
    .attention_tiles = false,
    .attention_finish = isa::attention_finish,
    .limit_operations = isa::limit_operations,
    .read_memory = isa::read_memory,
};

}  // namespace

const KernelTable* NYBBLE_JOIN(NYBBLE_ISA, _kernels)() { return &kTable; }

#if defined(NYBBLE_ISA_AVX512)

namespace {

using LinearInteger = decltype(KernelTable::fp4_linear_integer);
using LinearBfloat16 = decltype(KernelTable::fp4_linear_bfloat16);
using Attention = decltype(KernelTable::attention);
using LimitOperations = decltype(KernelTable::limit_operations);

constexpr KernelTable with_tiles(const char* name, LimitOperations limits, LinearInteger tiles) {
  KernelTable table = kTable;
  table.name = name;
  table.limit_operations = limits;
  table.fp4_linear_tiles = tiles;
  return table;
}

constexpr KernelTable with_tiles(const char* name, LimitOperations limits, LinearInteger tiles, LinearBfloat16 bfloat16,
                                 Attention attention) {
  KernelTable table = with_tiles(name, limits, tiles);
  table.prepare_w4a16 = isa::prepare_w4a16_rounded;  // one row or many: activations the tiles can hold
  table.tile_rows_w4a4 = isa::tile_rows_w4a4;
  table.tile_rows_w4a16 = isa::tile_rows_w4a16;
  table.fp4_linear_bfloat16 = bfloat16;
  table.attention = attention;
  table.attention_tiles = true;
  return table;
}

constexpr KernelTable without_vbmi() {
  KernelTable table = kTable;
  table.name = "avx512-vnni";
  table.vbmi = false;
  return table;
}

constexpr KernelTable for_zen() {
  KernelTable table = kTable;
  table.name = "avx512-zen";
  table.reading = kReadAtOnce;
  table.prepare_w4a16 = isa::prepare_w4a16_rounded;  // one row or many: what bfloat16 can hold
  table.tile_rows_w4a16 = isa::dot_rows_w4a16;
  table.fp4_linear_bfloat16 = isa::fp4_linear_bfloat16_dots;
  return table;
}

constexpr KernelTable kZenTable = for_zen();
constexpr KernelTable kVnniTable = without_vbmi();
constexpr KernelTable kInt8Table = with_tiles("amx", isa::limit_operations_amx_int8, isa::fp4_linear_amx);
constexpr KernelTable kBfloat16Table =
    with_tiles("amx", isa::limit_operations_amx_bfloat16, nullptr, isa::fp4_linear_bfloat16_amx, isa::attention_amx);
constexpr KernelTable kAmxTable =
    with_tiles("amx", isa::limit_operations_amx, isa::fp4_linear_amx, isa::fp4_linear_bfloat16_amx, isa::attention_amx);
constexpr KernelTable kEmulatedTable = with_tiles("amx-emulated", isa::limit_operations, isa::fp4_linear_amx_emulated,
                                                  isa::fp4_linear_bfloat16_amx_emulated, isa::attention_amx_emulated);

}  // namespace

const KernelTable* avx512_zen_kernels() { return &kZenTable; }
const KernelTable* avx512_vnni_kernels() { return &kVnniTable; }
const KernelTable* amx_kernels(bool int8_tiles, bool bfloat16_tiles) {
  if (!int8_tiles) return bfloat16_tiles ? &kBfloat16Table : nullptr;
  return bfloat16_tiles ? &kAmxTable : &kInt8Table;
}
const KernelTable* amx_emulated_kernels() { return &kEmulatedTable; }

#endif

}  // namespace nybble
