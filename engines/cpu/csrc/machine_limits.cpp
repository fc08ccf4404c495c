#include "machine_limits.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "aligned_buffer.h"
#include "isa.h"
#include "thread_pool.h"

namespace nybble {

namespace {

using Clock = std::chrono::steady_clock;

// A few milliseconds of reading: short enough to fall between a neighbour's bursts now and then.
constexpr std::size_t kWindowBytes = std::size_t{32} << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Wall time of `work(thread)` on all threads at once, from the common start to the last one's end. Threads have a core
/// each, as the kernels' have: two on one core would show half of what the machine can do.
double timed(int num_threads, const std::function<void(int)>& work) {
  std::barrier start(num_threads);
  std::vector<Clock::time_point> begun(static_cast<std::size_t>(num_threads));
  std::vector<Clock::time_point> ended(begun.size());
  const auto run = [&](int thread) {
    pin_thread(thread, num_threads);
    start.arrive_and_wait();
    begun[static_cast<std::size_t>(thread)] = Clock::now();
    work(thread);
    ended[static_cast<std::size_t>(thread)] = Clock::now();
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread) threads.emplace_back(run, thread);
  for (std::thread& thread : threads) thread.join();
  const auto first = *std::min_element(begun.begin(), begun.end());
  return std::chrono::duration<double>(*std::max_element(ended.begin(), ended.end()) - first).count();
}

void check_counts(int num_threads, int repetitions) {
  if (num_threads < 1 || num_threads > 1024) {
    throw std::invalid_argument("num_threads must be between 1 and 1024, got " + std::to_string(num_threads));
  }
  if (repetitions < 1) {
    throw std::invalid_argument("repetitions must be at least 1, got " + std::to_string(repetitions));
  }
}

}  // namespace

double measure_operations(LimitKind kind, int num_threads, double seconds, int repetitions) {
  check_counts(num_threads, repetitions);
  if (!(seconds > 0.0 && seconds <= 60.0)) throw std::invalid_argument("seconds must be positive and at most 60");
  const KernelTable& table = kernels();
  if (table.limit_operations(kind, 1) == 0.0) return 0.0;
  std::int64_t iterations = 1000;
  for (;; iterations *= 2) {
    const Clock::time_point start = Clock::now();
    table.limit_operations(kind, iterations);
    const double elapsed = seconds_since(start);
    if (elapsed < 1e-3) continue;
    iterations =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(iterations) * seconds / elapsed));
    break;
  }
  double best = 0.0;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    double operations = 0.0;
    const double elapsed = timed(num_threads, [&](int thread) {
      const double mine = table.limit_operations(kind, iterations);
      if (thread == 0) operations = mine;
    });
    best = std::max(best, operations * num_threads / elapsed);
  }
  return best;
}

double measure_read_bandwidth(std::size_t num_bytes, int num_threads, int repetitions) {
  check_counts(num_threads, repetitions);
  const std::size_t share = num_bytes / static_cast<std::size_t>(num_threads) / 4096 * 4096;
  if (share == 0) throw std::invalid_argument("num_bytes must give every thread at least 4096 bytes");
  AlignedBuffer buffer(share * static_cast<std::size_t>(num_threads));
  const auto part = [&](int thread) { return buffer.data() + share * static_cast<std::size_t>(thread); };
  // Written once: an untouched page would be read from the kernel's one page of zeros, out of the cache.
  timed(num_threads, [&](int thread) { std::fill_n(part(thread), share, static_cast<std::uint8_t>(thread + 1)); });
  const KernelTable& table = kernels();
  const std::size_t window = std::min(share, kWindowBytes);
  const std::size_t num_windows = share / window;
  double best = 0.0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(repetitions) * num_windows; ++i) {
    const std::size_t offset = i % num_windows * window;
    const double elapsed = timed(
        num_threads, [&](int thread) { table.read_memory(part(thread) + offset, static_cast<std::int64_t>(window)); });
    best = std::max(best, static_cast<double>(window) * num_threads / elapsed);
  }
  return best;
}

}  // namespace nybble
