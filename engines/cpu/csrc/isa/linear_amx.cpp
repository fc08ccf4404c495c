// The integer products on AMX tiles, and what the tiles can do at most. Called only where isa.cpp found AMX, the
// operating system's permission and a passed self-check.

#include "amx_instructions.h"
#include "bfloat16_tiles.h"
#include "integer_tiles.h"

namespace nybble::NYBBLE_ISA {

void fp4_linear_amx(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  HardwareTileInstructions::configure(full_tiles());
  run_integer_tiles<IntegerTiles<HardwareTileInstructions>>(args, panel_begin, panel_end);
  HardwareTileInstructions::release();
}

void fp4_linear_bfloat16_amx(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums) {
  HardwareTileInstructions::configure(full_tiles());
  run_bfloat16<HardwareTileInstructions>(args, panel_begin, panel_end, sums);
  HardwareTileInstructions::release();
}

double limit_operations_amx_int8(LimitKind kind, int64_t iterations) {
  if (kind == LimitKind::kAmxBfloat16) return 0.0;
  if (kind != LimitKind::kAmxInt8) return limit_operations(kind, iterations);
  using Tiles = HardwareTileInstructions;
  Tiles::configure(full_tiles());  // and with it all tiles are zero
  for (int64_t i = 0; i < iterations; ++i) {
    Tiles::dot_int8<0, 4, 6>();
    Tiles::dot_int8<1, 4, 7>();
    Tiles::dot_int8<2, 5, 6>();
    Tiles::dot_int8<3, 5, 7>();
  }
  Tiles::release();
  return static_cast<double>(iterations) * 4 * 2 * 16 * 16 * 64;
}

double limit_operations_amx_bfloat16(LimitKind kind, int64_t iterations) {
  if (kind == LimitKind::kAmxInt8) return 0.0;
  if (kind != LimitKind::kAmxBfloat16) return limit_operations(kind, iterations);
  using Tiles = HardwareTileInstructions;
  Tiles::configure(full_tiles());
  for (int64_t i = 0; i < iterations; ++i) {
    Tiles::dot_bfloat16<0, 4, 6>();
    Tiles::dot_bfloat16<1, 4, 7>();
    Tiles::dot_bfloat16<2, 5, 6>();
    Tiles::dot_bfloat16<3, 5, 7>();
  }
  Tiles::release();
  return static_cast<double>(iterations) * 4 * 2 * 16 * 16 * 32;
}

double limit_operations_amx(LimitKind kind, int64_t iterations) {
  return kind == LimitKind::kAmxBfloat16 ? limit_operations_amx_bfloat16(kind, iterations)
                                         : limit_operations_amx_int8(kind, iterations);
}

}  // namespace nybble::NYBBLE_ISA
