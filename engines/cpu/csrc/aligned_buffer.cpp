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
  if (num_bytes >= kHugePageBytes) {
    map_pages();
    return;
  }
  const std::size_t padded = (num_bytes + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, kCacheLineBytes, padded) != 0) throw std::bad_alloc();
  std::memset(memory, 0, padded);
  data_ = static_cast<std::uint8_t*>(memory);
}

// Fresh pages are zero already, so the threads that fill them are the first to touch them.
void AlignedBuffer::map_pages() {
  mapped_bytes_ = num_bytes_ + kHugePageBytes;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  const auto start = reinterpret_cast<std::uintptr_t>(mapping_);
  data_ = static_cast<std::uint8_t*>(mapping_) + (kHugePageBytes - start % kHugePageBytes) % kHugePageBytes;
#ifdef MADV_HUGEPAGE
  // Advice only: without transparent huge pages the call fails and nothing is lost.
  (void)madvise(mapping_, mapped_bytes_, MADV_HUGEPAGE);
#endif
}

void AlignedBuffer::release() {
  if (mapping_ != nullptr) {
    munmap(mapping_, mapped_bytes_);
  } else {
    std::free(data_);
  }
}

AlignedBuffer::~AlignedBuffer() { release(); }

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    mapping_ = std::exchange(other.mapping_, nullptr);
    mapped_bytes_ = std::exchange(other.mapped_bytes_, 0);
  }
  return *this;
}

}  // namespace nybble
