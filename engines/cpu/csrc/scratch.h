#pragma once
// Memory between the steps of a computation.

#include <cstdint>

#include "aligned_buffer.h"

namespace nybble {

/// Memory that only grows, kept between calls. What an earlier `take` gave is no longer valid after the next.
class Scratch {
 public:
  template <typename Element>
  Element* take(std::int64_t count) {
    const std::size_t num_bytes = static_cast<std::size_t>(count) * sizeof(Element);
    if (buffer_.num_bytes() < num_bytes) buffer_ = AlignedBuffer(num_bytes);
    return reinterpret_cast<Element*>(buffer_.data());
  }

 private:
  AlignedBuffer buffer_;
};

}  // namespace nybble
