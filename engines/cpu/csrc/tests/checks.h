#pragma once
// Checks that are counted and printed, comparisons, and random numbers: the same in every run.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nybble {

using Floats = std::vector<float>;
using Index = std::int64_t;

/// Counts and prints `what` unless it holds.
void check(bool holds, const std::string& what);

/// Checks that `call` throws std::invalid_argument.
void check_refused(const std::string& what, const std::function<void()>& call);

int num_failures();

bool same_bits(const Floats& a, const Floats& b);

/// Whether every number is within `tolerance` times 1 plus its size.
bool close(const Floats& got, const std::vector<double>& want, double tolerance);

Floats normals(Index count);

/// Uniform in [low, high].
std::vector<std::uint8_t> bytes(Index count, int low, int high);

}  // namespace nybble
