#pragma once
// Owned, cache-line-aligned, zeroed memory for repacked weights.

#include <cstddef>
#include <cstdint>

namespace nybble {

/// Memory of `num_bytes`, aligned to 64 bytes (to 2 MiB when large) and zeroed. Large buffers ask the kernel for
/// huge pages: a weight panel walk then costs few TLB misses. Throws std::bad_alloc.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t num_bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  void map_pages();
  void release();

  std::uint8_t* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // large buffers
  std::size_t mapped_bytes_ = 0;
};

}  // namespace nybble
