#pragma once
// A small persistent pool. One parallel region runs at a time; a second caller does its own work inline.

#include <cstdint>
#include <functional>

#include "upcoming_read.h"

namespace nybble {

/// Range [begin, end) of work units.
using RangeFunction = std::function<void(std::int64_t begin, std::int64_t end)>;

/// Physical cores this process may run on (SMT siblings counted once).
int num_physical_cores();

/// Threads a parallel region uses, the calling thread included.
int num_threads();

/// Takes effect for the next region; throws std::invalid_argument unless 1 <= count <= 1024.
void set_num_threads(int count);

/// Runs `function` over [0, num_units) in chunks. `unit_cost` is a rough count of elementary operations per unit:
/// below a threshold everything stays on the calling thread, a lower one while the workers are awake. Which thread runs
/// which chunk varies, so results must not depend on the split. `function` must not throw.
void parallel_for(std::int64_t num_units, double unit_cost, const RangeFunction& function);

/// While one exists regions follow each other closely: threads without work keep looking out for it and do not sleep,
/// unless they are made to wait for long.
class PassUnderWay {
 public:
  PassUnderWay();
  ~PassUnderWay();
  PassUnderWay(const PassUnderWay&) = delete;
  PassUnderWay& operator=(const PassUnderWay&) = delete;
};

/// Ties the calling thread to the core of its number, where there are as many threads as cores.
void pin_thread(int index, int num_threads);

/// For the thread that will run regions: ties it to the core that the workers leave it, unless there are more cores
/// than threads. Otherwise the system may put it beside a worker, on one core, when something else runs for a moment.
void pin_calling_thread();

/// From the next region on, threads that wait fetch the beginning of their share of `read`, until another is named.
/// Advice only: nothing is promised while another thread runs a region.
void fetch_while_waiting(const UpcomingRead& read);

}  // namespace nybble
