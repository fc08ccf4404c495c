#pragma once
// What joins the two halves of a feed-forward layer's first product.

#include "exponential.h"

namespace nybble::NYBBLE_ISA {

/// gate / (1 + e^-gate) * up.
static inline F16 silu_mul(F16 gate, F16 up) { return gate / (splat(1.0F) + exp(splat(0.0F) - gate)) * up; }

}  // namespace nybble::NYBBLE_ISA
