#include "amx_support.h"

#include <cstdio>

#include "amx_checks.h"

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
#if defined(NYBBLE_HOLLOW_TILES)
  return {amx_kernels(true, true), "hollow: a build that predicts times and computes nothing"};
#endif
  const TileInstructions present = tile_instructions();
  if (!present.int8 && !present.bfloat16) return {nullptr, "not in this processor"};
  if (!request_permission()) return {nullptr, "not permitted by the operating system"};
  const std::string int8 = fault_of(present.int8, int8_tiles_agree, amx_kernels(true, false), "int8");
  const auto bfloat16_agrees = [](const KernelTable& table) {
    return bfloat16_tiles_agree(table) && attention_tiles_agree(table);
  };
  const std::string bfloat16 = fault_of(present.bfloat16, bfloat16_agrees, amx_kernels(false, true), "bfloat16");
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

}  // namespace nybble
