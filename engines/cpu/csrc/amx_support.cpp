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

/// Instructions the processor has; none without the operating system's support of tile state.
struct TileInstructions {
  bool int8 = false;
  bool bfloat16 = false;
};

TileInstructions tile_instructions() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) == 0 || (ecx >> 27 & 1U) == 0) return {};  // OSXSAVE
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx >> 24 & 1U) == 0) return {};  // AMX-TILE
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 1U << 17 | 1U << 18;
  if ((low & kTileState) != kTileState) return {};
  return {(edx >> 25 & 1U) != 0, (edx >> 22 & 1U) != 0};  // AMX-INT8, AMX-BF16
}

bool request_permission() {
  constexpr long kRequestComponent = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestComponent, kTileData) == 0;
}

#else

struct TileInstructions {
  bool int8 = false;
  bool bfloat16 = false;
};
TileInstructions tile_instructions() { return {}; }
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

struct AmxSupport {
  const KernelTable* table;
  std::string status;
};

/// Why one kind of tiles is left alone; empty: it is not.
std::string fault_of(bool present, bool (*check)(const KernelTable&), const KernelTable* table, const char* kind) {
  if (!present) return "not in this processor";
  if (check(*table)) return "";
  std::fprintf(stderr, "nybble: products on AMX %s tiles differ from AVX-512's on this machine; they are left alone\n",
               kind);
  return "failed their self-check";
}

AmxSupport find_support() {
  if (amx_kernels(true, true) == nullptr) return {nullptr, "not in this build"};
  const TileInstructions present = tile_instructions();
  if (!present.int8 && !present.bfloat16) return {nullptr, "not in this processor"};
  if (!request_permission()) return {nullptr, "not permitted by the operating system"};
  const std::string int8 = fault_of(present.int8, int8_tiles_agree, amx_kernels(true, false), "int8");
  const std::string bfloat16 = fault_of(present.bfloat16, bfloat16_tiles_agree, amx_kernels(false, true), "bfloat16");
  const KernelTable* table = amx_kernels(int8.empty(), bfloat16.empty());
  if (int8.empty() && bfloat16.empty()) return {table, "usable"};
  return {table, std::string(table == nullptr ? "not usable" : "usable in part") +
                     "; int8 tiles: " + (int8.empty() ? "usable" : int8) +
                     ", bfloat16 tiles: " + (bfloat16.empty() ? "usable" : bfloat16)};
}

const AmxSupport& amx_support() {
  static const AmxSupport support = find_support();
  return support;
}

}  // namespace

const std::string& amx_status() { return amx_support().status; }

const KernelTable* usable_amx_kernels() { return amx_support().table; }

bool int8_tiles_agree(const KernelTable& table) {
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

bool bfloat16_tiles_agree(const KernelTable& table) {
  // An odd number of row tiles, a lone panel, lanes that pad, half a step of columns; several ranges of columns.
  constexpr std::int64_t kRows = 41, kOutputs = 40, kColumns = 16 * 69;
  Sequence sequence;
  std::vector<std::uint8_t> packed(kOutputs * kColumns / 2), scales(kOutputs * kColumns / 16);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(sequence.next());
  for (auto& byte : scales) byte = static_cast<std::uint8_t>(sequence.next() % 127);
  std::vector<float> scale_table(256);
  for (int byte = 0; byte < 127; ++byte) {
    scale_table[static_cast<std::size_t>(byte)] = byte < 8
                                                      ? std::ldexp(static_cast<float>(byte), -9)
                                                      : std::ldexp(static_cast<float>(8 + byte % 8), byte / 8 - 10);
  }
  const Fp4Weight weight({{packed.data(), scales.data(), scale_table.data(), kOutputs}}, kColumns, 16, false);

  std::vector<float> x(kRows * kColumns), activation_scales(kRows * kColumns / 16);
  std::vector<std::int8_t> codes(x.size());
  for (float& value : x) {
    value = std::ldexp(static_cast<float>(static_cast<std::int32_t>(sequence.next() % 2001) - 1000),
                       -static_cast<int>(sequence.next() % 12));
  }
  table.quantize_nvfp4({x.data(), codes.data(), activation_scales.data(), kColumns, 1.0F, true}, 0, kRows);

  // One row by itself goes through the vector kernels.
  std::vector<float> want(kOutputs), got(kRows * kOutputs);
  const auto same = [&](std::int64_t row) {
    return std::memcmp(want.data(), got.data() + row * kOutputs, want.size() * sizeof(float)) == 0;
  };
  bool agree = true;
  fp4_linear_w4a4(table, codes.data(), activation_scales.data(), weight, kRows, got.data());
  for (std::int64_t row = 0; row < kRows; ++row) {
    fp4_linear_w4a4(table, codes.data() + row * kColumns, activation_scales.data() + row * kColumns / 16, weight, 1,
                    want.data());
    agree = agree && same(row);
  }
  fp4_linear_w4a16(table, x.data(), weight, kRows, got.data());
  for (std::int64_t row = 0; row < kRows; ++row) {
    fp4_linear_w4a16(table, x.data() + row * kColumns, weight, 1, want.data());
    agree = agree && same(row);
  }
  return agree;
}

}  // namespace nybble
