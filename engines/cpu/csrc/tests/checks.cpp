#include "checks.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>

#include "isa.h"
#include "thread_pool.h"

namespace nybble {

namespace {

int g_failures = 0;
std::mt19937 g_random(7);

}  // namespace

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++g_failures;
  std::printf("FAILED [%s, %d threads] %s\n", kernels().name, num_threads(), what.c_str());
}

void check_refused(const std::string& what, const std::function<void()>& call) {
  try {
    call();
    check(false, what);
  } catch (const std::invalid_argument&) {
  }
}

int num_failures() { return g_failures; }

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

bool close(const Floats& got, const std::vector<double>& want, double tolerance) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= tolerance * (1.0 + std::fabs(want[i])))) return false;
  }
  return got.size() == want.size();
}

Floats normals(Index count) {
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(g_random);
  return values;
}

std::vector<std::uint8_t> bytes(Index count, int low, int high) {
  std::uniform_int_distribution<int> uniform(low, high);
  std::vector<std::uint8_t> values(static_cast<std::size_t>(count));
  for (auto& value : values) value = static_cast<std::uint8_t>(uniform(g_random));
  return values;
}

}  // namespace nybble
