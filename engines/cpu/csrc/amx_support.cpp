#include "amx_support.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "ops.h"
#include "weights.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nybble {

namespace {

#if defined(__x86_64__)

bool processor_has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) == 0 || (ecx >> 27 & 1U) == 0) return false;  // OSXSAVE
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmx = 1U << 22 | 1U << 24 | 1U << 25;  // BF16, TILE, INT8
  if ((edx & kAmx) != kAmx) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 1U << 17 | 1U << 18;
  return (low & kTileState) == kTileState;
}

bool request_permission() {
  constexpr long kRequestComponent = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestComponent, kTileData) == 0;
}

#else

bool processor_has_amx() { return false; }
bool request_permission() { return false; }

#endif

/// Numbers without a pattern, the same every time.
class Sequence {
 public:
  std::uint32_t next() {
    state_ = state_ * 1664525U + 1013904223U;
    return state_ >> 8;
  }

 private:
  std::uint32_t state_ = 20251U;
};

std::string find_status() {
  if (amx_kernels() == nullptr) return "not in this build";
  if (!processor_has_amx()) return "not in this processor";
  if (!request_permission()) return "not permitted by the operating system";
  if (!passes_self_check(*amx_kernels())) {
    std::fprintf(stderr, "nybble: AMX products differ from AVX-512's on this machine; AMX is left alone\n");
    return "failed its self-check";
  }
  return "usable";
}

}  // namespace

const std::string& amx_status() {
  static const std::string status = find_status();
  return status;
}

bool passes_self_check(const KernelTable& table) {
  constexpr std::int64_t kRows = 51, kOutputs = 40, kColumns = 288;
  Sequence sequence;
  std::vector<std::uint8_t> packed(kOutputs * kColumns / 2), scales(kOutputs * kColumns / 32);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(sequence.next());
  for (auto& byte : scales) byte = static_cast<std::uint8_t>(120 + sequence.next() % 3);
  std::vector<float> scale_table(256);
  for (int byte = 0; byte < 256; ++byte) scale_table[static_cast<std::size_t>(byte)] = std::ldexp(1.0F, byte - 127);
  const Fp4Weight weight({{packed.data(), scales.data(), scale_table.data(), kOutputs}}, kColumns, 32, false);

  std::vector<float> x(kRows * kColumns), activation_scales(kRows * kColumns / 32);
  std::vector<std::int8_t> codes(x.size());
  for (float& value : x) value = static_cast<float>(static_cast<std::int32_t>(sequence.next() % 2001) - 1000) * 0.01F;
  table.quantize_mxfp4({x.data(), codes.data(), activation_scales.data(), kColumns, 0.0F, false}, 0, kRows);

  std::vector<float> want(kRows * kOutputs), got(want.size());
  const auto same = [&] { return std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0; };
  fp4_linear_w4a4(*avx512_kernels(), codes.data(), activation_scales.data(), weight, kRows, want.data());
  fp4_linear_w4a4(table, codes.data(), activation_scales.data(), weight, kRows, got.data());
  if (!same()) return false;
  fp4_linear_w4a16(*avx512_kernels(), x.data(), weight, kRows, want.data());
  fp4_linear_w4a16(table, x.data(), weight, kRows, got.data());
  return same();
}

}  // namespace nybble
