#pragma once
// What keeps a bad index away from memory.

#include <cstdint>
#include <stdexcept>
#include <string>

namespace nybble {

/// Throws std::invalid_argument with `message` unless the condition holds.
inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

/// Throws std::invalid_argument that names the first value outside [0, limit).
template <typename Index>
void check_indices(const char* name, const Index* values, std::int64_t count, std::int64_t limit) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
                                  ", expected 0 <= value < " + std::to_string(limit));
    }
  }
}

}  // namespace nybble
