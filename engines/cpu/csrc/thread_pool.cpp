#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace nybble {

namespace {

constexpr double kMinParallelCost = 100e3;  // about 10 us of scalar work, what waking a thread costs
// Longer than what lies between two products of a layer, far shorter than what lies between two steps.
constexpr std::chrono::microseconds kSpinTime{50};
constexpr std::int64_t kChunksPerThread = 8;
constexpr std::size_t kCacheLineBytes = 64;

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// One processor of each physical core that this process may run on.
std::vector<int> physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return {};
  std::set<std::string> seen;
  std::vector<int> processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const std::string siblings = read_line(topology + "thread_siblings_list");
    if (seen.insert(siblings.empty() ? std::to_string(cpu) : siblings).second) processors.push_back(cpu);
  }
  return processors;
}

/// Ties the calling worker to the core of its number, where NYBBLE_PIN_THREADS=1 asks for it and there are cores
/// enough.
void pin_worker(int index, int num_threads) {
  const char* wanted = std::getenv("NYBBLE_PIN_THREADS");
  if (wanted != nullptr && std::string(wanted) == "0") return;
  const std::vector<int> processors = physical_cores();
  if (static_cast<std::size_t>(num_threads) != processors.size()) return;
  cpu_set_t target;
  CPU_ZERO(&target);
  CPU_SET(processors[static_cast<std::size_t>(index)], &target);
  (void)pthread_setaffinity_np(pthread_self(), sizeof(target), &target);  // advice only
}

/// Waits a while for `done` without giving up the processor.
template <typename Condition>
bool spin_until(const Condition& done) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 8; ++i) {
      if (done()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads) : shares_(static_cast<std::size_t>(num_threads)) {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  void stop() {
    stopping_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t num_units, const RangeFunction& function) {
    function_ = &function;
    const auto count = static_cast<std::int64_t>(num_threads());
    chunk_ = std::max<std::int64_t>(1, num_units / (count * kChunksPerThread));
    for (std::int64_t i = 0; i < count; ++i) {
      Share& share = shares_[static_cast<std::size_t>(i)];
      share.next.store(num_units * i / count, std::memory_order_relaxed);
      share.end = num_units * (i + 1) / count;
    }
    num_busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    take_chunks(0);
    wait_until_idle();
  }

 private:
  /// The units a thread takes first. Neighbouring units share memory and prefetched lines, so a thread goes through
  /// its own share in order and helps the others only then.
  struct alignas(kCacheLineBytes) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  void take_chunks(std::size_t thread) {
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(thread + i) % shares_.size()];
      for (;;) {
        const std::int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
        if (begin >= share.end) break;
        (*function_)(begin, std::min(begin + chunk_, share.end));
      }
    }
  }

  void wait_until_idle() {
    if (spin_until([this] { return num_busy_.load(std::memory_order_acquire) == 0; })) return;
    for (int busy = num_busy_.load(std::memory_order_acquire); busy != 0;
         busy = num_busy_.load(std::memory_order_acquire)) {
      num_busy_.wait(busy, std::memory_order_acquire);
    }
  }

  void work(int index) {
    pin_worker(index, static_cast<int>(shares_.size()));
    std::uint32_t seen = 0;
    for (;;) {
      if (!spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; })) {
        generation_.wait(seen, std::memory_order_acquire);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stopping_.load()) return;
      take_chunks(static_cast<std::size_t>(index));
      if (num_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_busy_.notify_one();
    }
  }

  std::vector<Share> shares_;
  std::vector<std::thread> workers_;
  const RangeFunction* function_ = nullptr;
  std::int64_t chunk_ = 1;
  std::atomic<int> num_busy_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
};

struct PoolState {
  std::mutex mutex;  // held during a region and while threads are replaced
  ThreadPool* pool = nullptr;
  std::atomic<int> wanted_threads{0};
};

PoolState* g_state = nullptr;
std::once_flag g_once;

// The state is never destroyed: at exit the idle workers simply die with the process, nothing joins, nothing hangs.
// In a forked child the workers do not exist, so the child starts with a fresh state and leaves the old one alone.
PoolState& state() {
  std::call_once(g_once, [] {
    g_state = new PoolState;
    pthread_atfork(nullptr, nullptr, [] {
      const int wanted = g_state->wanted_threads.load();
      g_state = new PoolState;
      g_state->wanted_threads.store(wanted);
    });
  });
  return *g_state;
}

}  // namespace

int num_physical_cores() {
  const std::size_t count = physical_cores().size();
  return count > 0 ? static_cast<int>(count) : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int num_threads() {
  PoolState& pool_state = state();
  if (pool_state.wanted_threads.load() == 0) pool_state.wanted_threads.store(num_physical_cores());
  return pool_state.wanted_threads.load();
}

void set_num_threads(int count) {
  if (count < 1 || count > 1024) {
    throw std::invalid_argument("num_threads must be between 1 and 1024, got " + std::to_string(count));
  }
  state().wanted_threads.store(count);
}

void parallel_for(std::int64_t num_units, double unit_cost, const RangeFunction& function) {
  if (num_units <= 0) return;
  const int wanted = num_threads();
  const bool small = static_cast<double>(num_units) * unit_cost < kMinParallelCost;
  if (wanted == 1 || num_units == 1 || small) return function(0, num_units);
  PoolState& pool_state = state();
  std::unique_lock lock(pool_state.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return function(0, num_units);
  if (pool_state.pool == nullptr || pool_state.pool->num_threads() != wanted) {
    if (pool_state.pool != nullptr) pool_state.pool->stop();
    delete pool_state.pool;
    pool_state.pool = nullptr;
    pool_state.pool = new ThreadPool(wanted);
  }
  pool_state.pool->run(num_units, function);
}

}  // namespace nybble
