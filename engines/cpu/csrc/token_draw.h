#pragma once
// Drawing a token from a row of logits. What is drawn is defined by engines/cpu/sampler.py's order of filters and by
// weights that are whole numbers whose sums float64 holds exactly: no result depends on the order of a sum.

#include <cstdint>
#include <vector>

namespace nybble {

struct DrawArgs {
  float inverse_temperature;
  float weight_scale;    // the largest weight
  float min_p_distance;  // logits further below the largest are left out; infinity: none
  std::int64_t top_k;    // 0: all
  double top_p;          // 1: all
  double uniform;        // in [0, 1)
};

/// The token at which the running sum of weights passes `uniform` of the whole. `num_tokens` > 0.
std::int64_t draw_token(const float* logits, std::int64_t num_tokens, const DrawArgs& args);

struct DrawTask {
  const float* logits;
  std::int64_t num_tokens;  // > 0
  DrawArgs args;
};

/// draw_token() of each task, on all threads.
void draw_tokens(const std::vector<DrawTask>& tasks, std::int64_t* token_ids);

/// NumPy's Generator(Philox(key=seed, counter=position)).random(): Philox4x64-10 of Salmon et al., 2011.
double philox_uniform(std::uint64_t seed, std::uint64_t position);

}  // namespace nybble
