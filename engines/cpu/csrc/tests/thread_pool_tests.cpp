#include "thread_pool_tests.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace nybble {

namespace {

constexpr double kAlwaysParallel = 1e6;  // cost of a unit

/// Whoever meets unit `held` waits until all units outside of his chunk are done: others must take what he has left.
/// A unit that nobody does would let him wait forever, hence the deadline.
bool region_is_whole(std::int64_t num_units, std::int64_t held) {
  std::vector<std::atomic<int>> times(static_cast<std::size_t>(num_units));
  std::atomic<std::int64_t> num_done{0};
  std::atomic<bool> in_time{true};
  parallel_for(num_units, kAlwaysParallel, [&](std::int64_t begin, std::int64_t end) {
    if (begin < 0 || begin >= end || end > num_units) {
      in_time = false;
      return;
    }
    if (begin <= held && held < end) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (in_time && num_done.load() < num_units - (end - begin)) {
        if (std::chrono::steady_clock::now() > deadline) in_time = false;
        std::this_thread::yield();
      }
    }
    for (std::int64_t i = begin; i < end; ++i) times[static_cast<std::size_t>(i)].fetch_add(1);
    num_done.fetch_add(end - begin);
  });
  bool whole = in_time;
  for (const std::atomic<int>& count : times) whole = whole && count.load() == 1;
  return whole;
}

bool regions_are_whole() {
  bool whole = true;
  for (const int threads : {2, 3, 4}) {
    set_num_threads(threads);
    for (const std::int64_t num_units : {2, 3, 5, 16, 63, 64, 65, 127, 129, 1000, 4097}) {
      for (const std::int64_t held : {std::int64_t{-1}, std::int64_t{0}, num_units / 2, num_units - 1}) {
        whole = whole && region_is_whole(num_units, held);
      }
    }
  }
  return whole;
}

/// Steps until a share is fetched.
int num_steps(ShareFetch& fetch) {
  int steps = 0;
  for (; !fetch.is_done(); ++steps) fetch.fetch_some();
  return steps;
}

}  // namespace

bool shares_are_fetched_once() {
  constexpr int kStepBytes = 8 * kMemoryLineBytes;
  const std::vector<std::uint8_t> memory(1 << 20);
  ShareFetch fetch;
  bool whole = fetch.is_done();
  const UpcomingRead small{memory.data(), kStepBytes, 99};
  fetch.aim(small, 1, 2);
  whole = whole && num_steps(fetch) == 50;
  fetch.aim(small, 1, 2);
  whole = whole && fetch.is_done();
  fetch.aim(small, 0, 2);
  whole = whole && num_steps(fetch) == 49;
  fetch.aim({memory.data() + kStepBytes, 64 * kStepBytes, 31}, 0, 1);
  whole = whole && num_steps(fetch) == (256 << 10) / kStepBytes;
  fetch.aim({}, 0, 2);
  return whole && fetch.is_done();
}

bool units_are_done_once() {
  const int before = num_threads();
  bool whole = regions_are_whole();
  {
    const PassUnderWay one, another;
    whole = whole && regions_are_whole();
  }
  whole = whole && regions_are_whole();
  set_num_threads(before);
  return whole;
}

}  // namespace nybble
