// The AMX kernels on emulated tiles: for tests, chosen by name only ("amx-emulated").

#include "amx_emulation.h"
#include "bfloat16_tiles.h"
#include "integer_tiles.h"

namespace nybble::NYBBLE_ISA {

void fp4_linear_amx_emulated(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  EmulatedTileInstructions::configure(full_tiles());
  run_integer_tiles<IntegerTiles<EmulatedTileInstructions>>(args, panel_begin, panel_end);
  EmulatedTileInstructions::release();
}

void fp4_linear_bfloat16_amx_emulated(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums) {
  EmulatedTileInstructions::configure(full_tiles());
  run_bfloat16<EmulatedTileInstructions>(args, panel_begin, panel_end, sums);
  EmulatedTileInstructions::release();
}

}  // namespace nybble::NYBBLE_ISA
