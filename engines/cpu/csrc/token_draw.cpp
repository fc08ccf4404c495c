#include "token_draw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "isa.h"
#include "thread_pool.h"

namespace nybble {

namespace {

constexpr std::int64_t kBlock = 256;

/// Memory of one draw, kept by the calling thread.
struct DrawMemory {
  std::vector<std::int32_t> token_ids;
  std::vector<float> logits;
  std::vector<float> best;
  std::vector<float> weights;
  std::vector<double> bins;
};

/// Exact, hence in any order: eight sums at a time.
double sum(const float* weights, std::int64_t count) {
  double parts[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) parts[j] += static_cast<double>(weights[i + j]);
  }
  for (; i < count; ++i) parts[0] += static_cast<double>(weights[i]);
  for (int j = 1; j < 8; ++j) parts[0] += parts[j];
  return parts[0];
}

/// Calls `take(i)` for every i with `wanted(values[i])`, in ascending order: few of many.
template <typename Wanted, typename Take>
void for_each_wanted(const float* values, std::int64_t count, const Wanted& wanted, const Take& take) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    int any = 0;
    for (int j = 0; j < 16; ++j) any |= wanted(values[i + j]) ? 1 : 0;
    if (any == 0) continue;
    for (int j = 0; j < 16; ++j) {
      if (wanted(values[i + j])) take(i + j);
    }
  }
  for (; i < count; ++i) {
    if (wanted(values[i])) take(i);
  }
}

/// The `k`-th largest logit. Leaves the larger ones in the front of `best`.
float kth_largest(const float* logits, std::int64_t count, std::int64_t k, std::vector<float>& best) {
  const auto size = static_cast<std::size_t>(k);
  const auto keep_best = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<>());
    best.resize(size);
    return best[size - 1];
  };
  // A NaN, which would confuse the selection, is the least of all.
  best.resize(size);
  std::transform(logits, logits + k, best.begin(),
                 [](float x) { return std::isnan(x) ? -std::numeric_limits<float>::infinity() : x; });
  float threshold = keep_best();
  for_each_wanted(
      logits + k, count - k, [&](float x) { return x > threshold; },
      [&](std::int64_t i) {
        best.push_back(logits[k + i]);
        if (best.size() == 2 * size + 64) threshold = keep_best();
      });
  return keep_best();
}

/// What min-p leaves.
void keep_min_p(const float* logits, std::int64_t count, float maximum, float distance, DrawMemory& memory) {
  memory.token_ids.clear();
  memory.logits.clear();
  for_each_wanted(
      logits, count, [&](float x) { return maximum - x <= distance; },
      [&](std::int64_t i) {
        memory.token_ids.push_back(static_cast<std::int32_t>(i));
        memory.logits.push_back(logits[i]);
      });
}

/// The `k` best, ties at the edge to the lower index. `logits` may be those of `memory`, then its ids hold.
void keep_top_k(const float* logits, std::int64_t count, std::int64_t k, bool of_memory, DrawMemory& memory) {
  const float threshold = kth_largest(logits, count, k, memory.best);
  const auto num_above = std::count_if(memory.best.begin(), memory.best.end(), [&](float x) { return x > threshold; });
  std::int64_t num_ties = k - num_above;
  if (!of_memory) {
    memory.token_ids.resize(static_cast<std::size_t>(k));
    memory.logits.resize(static_cast<std::size_t>(k));
  }
  std::size_t kept = 0;
  for_each_wanted(
      logits, count, [&](float x) { return x >= threshold; },
      [&](std::int64_t i) {
        const float logit = logits[i];
        if (logit == threshold && num_ties-- <= 0) return;
        memory.token_ids[kept] =
            of_memory ? memory.token_ids[static_cast<std::size_t>(i)] : static_cast<std::int32_t>(i);
        memory.logits[kept++] = logit;
      });
  memory.token_ids.resize(kept);
  memory.logits.resize(kept);
}

/// Weights that count: those above `threshold`, and the first `num_ties` that equal it.
struct Head {
  float threshold;
  std::int64_t num_ties;
  double total;
};

std::size_t bin_of(float weight) {
  std::uint32_t bits;
  std::memcpy(&bits, &weight, sizeof(bits));
  return bits >> 19;  // sixteen bins a power of two
}

/// The fewest of the largest weights whose sum reaches `needed`.
Head find_head(const float* weights, std::int64_t count, double needed, DrawMemory& memory) {
  memory.bins.assign(std::size_t{1} << 12, 0.0);
  for (std::int64_t i = 0; i < count; ++i) memory.bins[bin_of(weights[i])] += static_cast<double>(weights[i]);
  std::size_t bin = memory.bins.size() - 1;
  double total = 0.0;
  while (bin > 0 && total + memory.bins[bin] < needed) total += memory.bins[bin--];
  memory.best.clear();
  for (std::int64_t i = 0; i < count; ++i) {
    if (bin_of(weights[i]) == bin) memory.best.push_back(weights[i]);
  }
  std::sort(memory.best.begin(), memory.best.end(), std::greater<>());
  Head head{0.0F, 0, total};
  for (const float weight : memory.best) {
    head.num_ties = weight == head.threshold ? head.num_ties + 1 : 1;
    head.threshold = weight;
    head.total += static_cast<double>(weight);
    if (head.total >= needed) break;
  }
  return head;
}

/// The index at which the running sum passes `target`.
std::int64_t pass_all(const float* weights, std::int64_t count, double target) {
  double running = 0.0;
  std::int64_t begin = 0;
  for (; begin + kBlock < count; begin += kBlock) {
    const double with_block = running + sum(weights + begin, kBlock);
    if (with_block > target) break;
    running = with_block;
  }
  std::int64_t last = 0;
  for (std::int64_t i = begin; i < count; ++i) {
    running += static_cast<double>(weights[i]);
    if (running > target) return i;
    if (weights[i] > 0.0F) last = i;
  }
  return last;
}

std::int64_t pass_head(const float* weights, std::int64_t count, Head head, double target) {
  double running = 0.0;
  std::int64_t index = 0;
  for_each_wanted(
      weights, count, [&](float x) { return x >= head.threshold; },
      [&](std::int64_t i) {
        if (running > target || (weights[i] == head.threshold && head.num_ties-- <= 0)) return;
        running += static_cast<double>(weights[i]);
        index = i;
      });
  return index;
}

}  // namespace

std::int64_t draw_token(const float* logits, std::int64_t num_tokens, const DrawArgs& args) {
  thread_local DrawMemory memory;
  const KernelTable& table = kernels();
  const float maximum = table.logits_peak(logits, num_tokens).logit;
  std::int64_t count = num_tokens;
  bool is_filtered = false;
  const auto filtered = [&] {
    is_filtered = true;
    logits = memory.logits.data();
    count = static_cast<std::int64_t>(memory.logits.size());
  };
  if (args.min_p_distance < std::numeric_limits<float>::infinity()) {
    keep_min_p(logits, count, maximum, args.min_p_distance, memory);
    filtered();
  }
  if (args.top_k > 0 && args.top_k < count) {
    keep_top_k(logits, count, args.top_k, is_filtered, memory);
    filtered();
  }
  memory.weights.resize(static_cast<std::size_t>(count));
  float* weights = memory.weights.data();
  table.token_weights(logits, count, maximum, args.inverse_temperature, args.weight_scale, weights);
  const double total = sum(weights, count);
  std::int64_t index;
  if (args.top_p < 1.0) {
    const Head head = find_head(weights, count, args.top_p * total, memory);
    index = pass_head(weights, count, head, args.uniform * head.total);
  } else {
    index = pass_all(weights, count, args.uniform * total);
  }
  return is_filtered ? memory.token_ids[static_cast<std::size_t>(index)] : index;
}

void draw_tokens(const std::vector<DrawTask>& tasks, std::int64_t* token_ids) {
  if (tasks.empty()) return;
  const double cost = 4.0 * static_cast<double>(tasks[0].num_tokens);  // an exponential each
  parallel_for(static_cast<std::int64_t>(tasks.size()), cost, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const DrawTask& task = tasks[static_cast<std::size_t>(i)];
      token_ids[i] = draw_token(task.logits, task.num_tokens, task.args);
    }
  });
}

double philox_uniform(std::uint64_t seed, std::uint64_t position) {
  // The generator counts before it draws.
  std::uint64_t counter[4] = {position + 1, position == std::numeric_limits<std::uint64_t>::max() ? 1U : 0U, 0, 0};
  std::uint64_t key[2] = {seed, 0};
  for (int round = 0; round < 10; ++round) {
    const auto first = static_cast<unsigned __int128>(0xD2E7470EE14C6C93U) * counter[0];
    const auto second = static_cast<unsigned __int128>(0xCA5A826395121157U) * counter[2];
    const std::uint64_t next[4] = {
        static_cast<std::uint64_t>(second >> 64) ^ counter[1] ^ key[0], static_cast<std::uint64_t>(second),
        static_cast<std::uint64_t>(first >> 64) ^ counter[3] ^ key[1], static_cast<std::uint64_t>(first)};
    std::copy_n(next, 4, counter);
    key[0] += 0x9E3779B97F4A7C15U;
    key[1] += 0xBB67AE8584CAA73BU;
  }
  return static_cast<double>(counter[0] >> 11) * 0x1p-53;
}

}  // namespace nybble
