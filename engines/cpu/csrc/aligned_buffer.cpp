#include "aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace nybble {

namespace {
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
constexpr std::size_t kCacheLineBytes = 64;
}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t num_bytes) : num_bytes_(num_bytes) {
  if (num_bytes == 0) return;
  const std::size_t alignment = num_bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes;
  const std::size_t padded = (num_bytes + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, padded) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Advice only: without transparent huge pages the call fails and nothing is lost.
  if (num_bytes >= kHugePageBytes) (void)madvise(memory, padded, MADV_HUGEPAGE);
#endif
  std::memset(memory, 0, padded);
  data_ = static_cast<std::uint8_t*>(memory);
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  if (this != &other) {
    std::free(data_);
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
  }
  return *this;
}

}  // namespace nybble
