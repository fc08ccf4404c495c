#pragma once
// Limits of the machine as the engine could reach them: arithmetic peaks and read bandwidth, over a number of threads.

#include <cstddef>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace nybble {

/// Operations a second (a multiply-add counts two), all threads together, best of `repetitions` runs of about
/// `seconds` each. 0 where the processor lacks the instruction. Throws std::invalid_argument for bad counts.
double measure_operations(LimitKind kind, int num_threads, double seconds, int repetitions);

/// Bytes a second that `num_threads` read from a buffer of `num_bytes` in memory, window by window: the best window of
/// `repetitions` passes, each window as cold as the buffer is large.
/// Throws std::invalid_argument for bad counts, std::bad_alloc when the buffer does not fit.
double measure_read_bandwidth(std::size_t num_bytes, int num_threads, int repetitions);

}  // namespace nybble
