// The integer products on VNNI.

#include "integer_panels_avx512.h"

namespace nybble::NYBBLE_ISA {

void fp4_linear_integer(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  run_integer<VectorTiles>(args, panel_begin, panel_end);
}

}  // namespace nybble::NYBBLE_ISA
