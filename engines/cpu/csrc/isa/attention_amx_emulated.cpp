#include "amx_emulation.h"
#include "attention_amx.h"

namespace nybble::NYBBLE_ISA {

void attention_amx_emulated(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next,
                            float* workspace, float* states, int64_t state_floats) {
  attend_on_tiles<EmulatedTileInstructions>(args, item, next, workspace, states, state_floats);
}

}  // namespace nybble::NYBBLE_ISA
