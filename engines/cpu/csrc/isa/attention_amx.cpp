#include "attention_amx.h"
#include "amx_instructions.h"

namespace nybble::NYBBLE_ISA {

void attention_amx(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
                   float* states, int64_t state_floats) {
  attend_on_tiles<HardwareTileInstructions>(args, item, next, workspace, states, state_floats);
}

}  // namespace nybble::NYBBLE_ISA
