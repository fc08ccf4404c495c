// A row of logits: its largest one, and weights in place of probabilities.

#include "exponential.h"
#include "kernels.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

LogitsPeak logits_peak(const float* logits, int64_t num_tokens) {
  constexpr int64_t kBlock = 512;
  float largest = logits[0];
  int64_t block_of_largest = 0;
  F16 not_finite = splat(0.0F);  // x - x is 0, or NaN
  bool finite = true;
  int64_t i = 0;
  for (; i + kBlock <= num_tokens; i += kBlock) {
    F16 most = load(logits + i);
    for (int64_t j = 0; j < kBlock; j += 16) {
      const F16 x = load(logits + i + j);
      most = max(x, most);
      not_finite = not_finite + (x - x);
    }
    const float block_largest = max_lanes(most);
    if (block_largest > largest) {
      largest = block_largest;
      block_of_largest = i;
    }
  }
  for (; i < num_tokens; ++i) {
    finite = finite && logits[i] - logits[i] == 0.0F;
    if (logits[i] > largest) {
      largest = logits[i];
      block_of_largest = i;
    }
  }
  int64_t token_id = block_of_largest;
  while (token_id + 1 < num_tokens && logits[token_id] != largest) ++token_id;
  return {largest, token_id, finite && sum_lanes(not_finite) == 0.0F};
}

void token_weights(const float* logits, int64_t num_tokens, float maximum, float inverse_temperature, float scale,
                   float* weights) {
  // exp() of less rounds to no weight anyway.
  const F16 lowest = splat(-80.0F), most = splat(maximum), factor = splat(inverse_temperature);
  const F16 whole = splat(8388608.0F);  // 2^23: what is larger has no fraction
  for (int64_t i = 0; i < num_tokens; i += 16) {
    const int64_t count = min64(16, num_tokens - i);
    const F16 x = count == 16 ? load(logits + i) : load_partial(logits + i, count);
    // The difference first, so that the largest logit does not overflow.
    const F16 weight = exp(max((x - most) * factor, lowest)) * splat(scale);
    const F16 small = (min(weight, whole) + whole) - whole;  // to nearest, ties to even
    store_partial(weights + i, small + (max(weight, whole) - whole), count);
  }
}

}  // namespace nybble::NYBBLE_ISA
