#pragma once
// The softmax of attention: online over the tiles of a partition, merged over partitions.

#include "attention_queries.h"
#include "exponential.h"
#include "kv_scales.h"
#include "lanes.h"

namespace nybble::NYBBLE_ISA {

static inline void clear(const Queries& queries, const AttentionState& state, float* lane_sums) {
  const int64_t padded = round_up_to_lanes(queries.count);
  for (int64_t i = 0; i < padded; ++i) state.largest[i] = -__builtin_inff();
  std::memset(lane_sums, 0, static_cast<std::size_t>(padded) * 16 * sizeof(float));
  std::memset(state.values, 0, static_cast<std::size_t>(queries.count * queries.stride) * sizeof(float));
}

/// Largest score of each query, and what that makes of the sums so far. Scores take the keys' scales first.
template <typename Scales = Unscaled>
static inline void raise_largest(const TileView& view, const AttentionScratch& scratch, const AttentionState& state,
                                 const Scales& scales = {}) {
  const F16 lowest = splat(-__builtin_inff());
  for (int64_t row = view.rows.begin; row < view.rows.end; ++row) {
    const Range seen = view.seen[row];
    for (int64_t i = row * view.group; i < (row + 1) * view.group; ++i) {
      F16 highest = lowest;
      for (int64_t j = seen.begin / 16 * 16; j < seen.end; j += 16) {
        float* target = scratch.scores + i * kAttentionTileKeys + j;
        F16 scores = load(target);
        if constexpr (Scales::kAreScaled) {
          scores = scales.scores(scores, j);
          store(target, scores);
        }
        highest = max(select_lanes(scores, lowest, seen.begin - j, seen.end - j), highest);
      }
      const float largest = max_lanes(highest);
      scratch.factors[i] = state.largest[i];
      state.largest[i] = largest > state.largest[i] ? largest : state.largest[i];
    }
  }
  const Range queries = view.queries();
  for (int64_t i = queries.begin / 16 * 16; i < queries.end; i += 16) {
    store(scratch.factors + i, exp2(load(scratch.factors + i) - load(state.largest + i)));
  }
}

/// Scores become weights; masked lanes count as 0, the others sit in the lane of their position. The total is of
/// weights without the values' scales.
template <typename Scales = Unscaled>
static inline void weigh(const TileView& view, const AttentionScratch& scratch, const AttentionState& state,
                         const Scales& scales = {}) {
  for (int64_t row = view.rows.begin; row < view.rows.end; ++row) {
    const Range seen = view.seen[row];
    for (int64_t i = row * view.group; i < (row + 1) * view.group; ++i) {
      const F16 largest = splat(state.largest[i]);
      F16 sum = load(scratch.lane_sums + 16 * i) * splat(scratch.factors[i]);
      for (int64_t j = seen.begin / 16 * 16; j < seen.end; j += 16) {
        float* scores = scratch.scores + i * kAttentionTileKeys + j;
        const F16 weights = exp2(load(scores) - largest);
        if constexpr (Scales::kAreScaled) {
          store(scores, scales.weights(weights, j));
        } else {
          store(scores, weights);
        }
        sum = sum + select_lanes(weights, splat(0.0F), seen.begin - j, seen.end - j);
      }
      store(scratch.lane_sums + 16 * i, sum);
    }
  }
}

/// Adds the later positions of `from` to `into`.
static inline void merge(const Queries& queries, const AttentionState& from, const AttentionState& into) {
  for (int64_t i = 0; i < queries.count; ++i) {
    if (from.totals[i] == 0.0F) continue;
    float* values = into.values + i * queries.stride;
    const float* added = from.values + i * queries.stride;
    const bool is_first = into.totals[i] == 0.0F;
    const float largest = from.largest[i] > into.largest[i] ? from.largest[i] : into.largest[i];
    const F16 keep = exp2(splat(into.largest[i] - largest));
    const F16 add = exp2(splat(from.largest[i] - largest));
    for (int64_t d = 0; d < queries.stride; d += 16) {
      const F16 part = load(added + d);
      store(values + d, is_first ? part : fma(part, add, load(values + d) * keep));
    }
    alignas(64) float total[16];
    store(total, fma(splat(from.totals[i]), add, splat(into.totals[i]) * keep));
    into.totals[i] = is_first ? from.totals[i] : total[0];
    into.largest[i] = is_first ? from.largest[i] : largest;
  }
}

}  // namespace nybble::NYBBLE_ISA
