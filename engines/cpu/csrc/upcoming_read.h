#pragma once
// Memory that is about to be read, fetched into L2 by threads that have nothing else to do.

#include <algorithm>
#include <cstdint>

namespace nybble {

/// Unit i of a coming region reads the bytes [i * unit_bytes, (i + 1) * unit_bytes) of `data`.
struct UpcomingRead {
  const std::uint8_t* data = nullptr;
  std::int64_t unit_bytes = 0;
  std::int64_t num_units = 0;
};

constexpr std::int64_t kMemoryLineBytes = 64;

/// An instruction, not a builtin: GCC 12 may drop a call of a function of nothing but builtin prefetches. Never faults.
inline void fetch_line_into_l2(const std::uint8_t* line) {
#if defined(__x86_64__)
  asm volatile("prefetcht1 %a0" : : "p"(line));
#else
  __builtin_prefetch(line, 0, 2);
#endif
}

/// The beginning of one thread's share, fetched piece by piece.
class ShareFetch {
 public:
  /// Goes on where it was if it is the same share.
  void aim(const UpcomingRead& read, std::int64_t thread, std::int64_t num_threads) {
    const std::int64_t first = read.num_units * thread / num_threads;
    const std::int64_t last = read.num_units * (thread + 1) / num_threads;
    const std::uint8_t* begin = read.data + first * read.unit_bytes;
    if (begin == begin_) return;
    begin_ = next_ = begin;
    end_ = begin + std::min(kMostBytes, (last - first) * read.unit_bytes);
  }

  bool is_done() const { return next_ >= end_; }

  /// A few lines only: whoever waits looks up again soon.
  void fetch_some() {
    for (int i = 0; i < kLinesTogether; ++i, next_ += kMemoryLineBytes) fetch_line_into_l2(next_);
  }

 private:
  static constexpr std::int64_t kMostBytes = 256 << 10;  // of an L2 of 1 MiB and more
  static constexpr int kLinesTogether = 8;

  const std::uint8_t* begin_ = nullptr;
  const std::uint8_t* next_ = nullptr;
  const std::uint8_t* end_ = nullptr;
};

}  // namespace nybble
