#include "isa.h"

#include "amx_support.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace nybble {

namespace {

/// What decides about the kernels.
struct Processor {
  bool avx2 = false, avx512 = false, vbmi = false, bfloat16 = false, amd = false;
};

Processor processor() {
  Processor found;
#if defined(__x86_64__)
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  found.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni");
  found.vbmi = found.avx512 && __builtin_cpu_supports("avx512vbmi");
  found.bfloat16 = found.avx512 && __builtin_cpu_supports("avx512bf16");
  found.amd = __builtin_cpu_is("amd");
#endif
  return found;
}

std::vector<const KernelTable*> available_tables() {
  const Processor here = processor();
  std::vector<const KernelTable*> tables;
  if (here.avx512 && avx512_kernels() != nullptr) {
    if (here.vbmi) {
      if (usable_amx_kernels() != nullptr) tables.push_back(usable_amx_kernels());
      if (!here.amd) tables.push_back(avx512_kernels());
      if (here.bfloat16) tables.push_back(avx512_zen_kernels());
      if (here.amd) tables.push_back(avx512_kernels());
    }
    tables.push_back(avx512_vnni_kernels());
  }
  if (here.avx2 && avx2_kernels() != nullptr) tables.push_back(avx2_kernels());
  tables.push_back(plain_kernels());
  return tables;
}

const KernelTable* find_table(const std::string& name) {
  const KernelTable* emulated = amx_emulated_kernels();
  if (emulated != nullptr && name == emulated->name && processor().vbmi) return emulated;
  std::string choices;
  for (const KernelTable* table : available_tables()) {
    if (name == table->name) return table;
    choices += (choices.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; choose one of: " + choices);
}

std::atomic<const KernelTable*> g_table{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->name);
  return names;
}

void set_isa(const std::string& name) { g_table.store(find_table(name)); }

const KernelTable& kernels() {
  const KernelTable* table = g_table.load(std::memory_order_relaxed);
  if (table == nullptr) {
    const char* forced = std::getenv("NYBBLE_CPU_ISA");
    table = forced != nullptr && *forced != '\0' ? find_table(forced) : available_tables().front();
    g_table.store(table);
  }
  return *table;
}

}  // namespace nybble
