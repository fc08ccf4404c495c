#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "physical_cores.h"

namespace nybble {

namespace {

constexpr double kMinParallelCost = 100e3;  // about 10 us of scalar work, what waking a thread costs
constexpr double kMinAwakeCost = 16e3;      // the same while the workers still look out for work
// A thread without work looks out for it for so long before it sleeps: not from one step to the next.
constexpr std::chrono::microseconds kSpinTime{50};
// The same inside a pass. A core whose thread sleeps is given to whatever else runs, for a time slice of milliseconds,
// and all other threads then wait for that.
constexpr std::chrono::microseconds kSpinTimeInPass{2000};
constexpr std::int64_t kChunkPart = 8;   // of what a thread has left, it takes this part at a time
constexpr std::int64_t kManyUnits = 32;  // a thread
constexpr std::int64_t kMaxUnits = (std::int64_t{1} << 32) - 1;
constexpr std::size_t kCacheLineBytes = 64;

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::atomic<int> num_passes{0};  // under way

std::chrono::microseconds spin_time() {
  return num_passes.load(std::memory_order_relaxed) > 0 ? kSpinTimeInPass : kSpinTime;
}

/// Waits a while for `done` without giving up the processor, and fetches meanwhile.
template <typename Condition>
bool spin_until(const Condition& done, ShareFetch& fetch) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 8; ++i) {
      if (done()) return true;
      if (fetch.is_done()) {
        cpu_relax();
      } else {
        fetch.fetch_some();
      }
    }
  } while (std::chrono::steady_clock::now() - begin < spin_time());
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

  /// Whether a region begins at once: workers that sleep take as long to wake as kMinParallelCost.
  bool is_awake() const { return std::chrono::steady_clock::now() - last_end_ < spin_time() / 2; }

  void run(std::int64_t num_units, const RangeFunction& function, const UpcomingRead& upcoming) {
    function_ = &function;
    const auto count = static_cast<std::int64_t>(num_threads());
    // Kernels like panels in pairs; where units are few, one may be much work.
    smallest_ = num_units >= count * kManyUnits ? 2 : 1;
    for (std::int64_t i = 0; i < count; ++i) {
      shares_[static_cast<std::size_t>(i)].give({num_units * i / count, num_units * (i + 1) / count});
    }
    num_busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    upcoming_ = upcoming;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    take_chunks(0);
    fetch_.aim(upcoming, 0, count);
    wait_until_idle();
    last_end_ = std::chrono::steady_clock::now();
  }

 private:
  struct Range {
    std::int64_t begin;
    std::int64_t end;
    std::int64_t size() const { return end - begin; }
  };

  /// The units that a thread has before it. Neighbouring units share memory and prefetched lines, so the owner takes
  /// them from the front, in order, and others from the back. Both ends in one word: they change together.
  class alignas(kCacheLineBytes) Share {
   public:
    void give(Range range) { ends_.store(pack(range), std::memory_order_relaxed); }

    /// Removes `wanted(number of units left)` of them, at most what is left; an empty range when there are none.
    template <typename Wanted>
    Range take(bool from_back, const Wanted& wanted) {
      std::uint64_t ends = ends_.load(std::memory_order_relaxed);
      for (;;) {
        const Range left{static_cast<std::int64_t>(ends >> 32), static_cast<std::int64_t>(ends & kMaxUnits)};
        if (left.size() <= 0) return {0, 0};
        const std::int64_t count = std::min(left.size(), wanted(left.size()));
        const Range taken = from_back ? Range{left.end - count, left.end} : Range{left.begin, left.begin + count};
        const Range rest = from_back ? Range{left.begin, taken.begin} : Range{taken.end, left.end};
        if (ends_.compare_exchange_weak(ends, pack(rest), std::memory_order_relaxed)) return taken;
      }
    }

   private:
    static std::uint64_t pack(Range range) {
      return static_cast<std::uint64_t>(range.begin) << 32 | static_cast<std::uint64_t>(range.end);
    }

    std::atomic<std::uint64_t> ends_{0};
  };

  /// Chunks become smaller towards the end, so that all threads end at about the same time. Who is done takes half of
  /// what another has left, as a share of his own.
  void take_chunks(std::size_t thread) {
    const auto next_chunk = [this](std::int64_t left) { return std::max(smallest_, left / kChunkPart / 2 * 2); };
    const auto half = [this](std::int64_t left) { return std::max(smallest_, left / 4 * 2); };
    Share& own = shares_[thread];
    for (std::size_t i = 1;;) {
      const Range chunk = own.take(false, next_chunk);
      if (chunk.size() > 0) {
        (*function_)(chunk.begin, chunk.end);
        continue;
      }
      if (i == shares_.size()) return;
      const Range stolen = shares_[(thread + i) % shares_.size()].take(true, half);
      if (stolen.size() > 0) {
        own.give(stolen);
      } else {
        ++i;
      }
    }
  }

  void wait_until_idle() {
    if (spin_until([this] { return num_busy_.load(std::memory_order_acquire) == 0; }, fetch_)) return;
    for (int busy = num_busy_.load(std::memory_order_acquire); busy != 0;
         busy = num_busy_.load(std::memory_order_acquire)) {
      num_busy_.wait(busy, std::memory_order_acquire);
    }
  }

  void work(int index) {
    pin_thread(index, static_cast<int>(shares_.size()));
    std::uint32_t seen = 0;
    ShareFetch fetch;
    for (;;) {
      if (!spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; }, fetch)) {
        generation_.wait(seen, std::memory_order_acquire);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stopping_.load()) return;
      take_chunks(static_cast<std::size_t>(index));
      fetch.aim(upcoming_, index, static_cast<std::int64_t>(shares_.size()));
      if (num_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_busy_.notify_one();
    }
  }

  std::vector<Share> shares_;
  std::vector<std::thread> workers_;
  const RangeFunction* function_ = nullptr;
  std::int64_t smallest_ = 1;
  UpcomingRead upcoming_;
  ShareFetch fetch_;  // of the calling thread
  std::chrono::steady_clock::time_point last_end_;
  std::atomic<int> num_busy_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
};

struct PoolState {
  std::mutex mutex;  // held during a region and while threads are replaced
  ThreadPool* pool = nullptr;
  UpcomingRead upcoming;
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
      num_passes.store(0);
    });
  });
  return *g_state;
}

}  // namespace

void pin_thread(int index, int num_threads) {
  const char* wanted = std::getenv("NYBBLE_PIN_THREADS");
  if (wanted != nullptr && std::string(wanted) == "0") return;
  const std::vector<int>& processors = physical_cores();
  if (static_cast<std::size_t>(num_threads) != processors.size()) return;
  cpu_set_t target;
  CPU_ZERO(&target);
  CPU_SET(processors[static_cast<std::size_t>(index)], &target);
  (void)pthread_setaffinity_np(pthread_self(), sizeof(target), &target);  // advice only
}

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
  const double cost = static_cast<double>(num_units) * unit_cost;
  if (wanted == 1 || num_units == 1 || num_units > kMaxUnits || cost < kMinAwakeCost) return function(0, num_units);
  PoolState& pool_state = state();
  std::unique_lock lock(pool_state.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return function(0, num_units);
  const bool is_awake = pool_state.pool != nullptr && pool_state.pool->is_awake();
  if (cost < kMinParallelCost && !is_awake) return function(0, num_units);
  if (pool_state.pool == nullptr || pool_state.pool->num_threads() != wanted) {
    if (pool_state.pool != nullptr) pool_state.pool->stop();
    delete pool_state.pool;
    pool_state.pool = nullptr;
    pool_state.pool = new ThreadPool(wanted);
  }
  pool_state.pool->run(num_units, function, pool_state.upcoming);
}

PassUnderWay::PassUnderWay() { num_passes.fetch_add(1, std::memory_order_relaxed); }

PassUnderWay::~PassUnderWay() { num_passes.fetch_sub(1, std::memory_order_relaxed); }

void pin_calling_thread() { pin_thread(0, num_threads()); }

void fetch_while_waiting(const UpcomingRead& read) {
  PoolState& pool_state = state();
  const std::unique_lock lock(pool_state.mutex, std::try_to_lock);
  if (lock.owns_lock()) pool_state.upcoming = read;
}

}  // namespace nybble
