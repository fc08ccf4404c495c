#include "isa.h"

#include "amx_support.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace nybble {

namespace {

bool processor_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool processor_has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool processor_has_vbmi() {
#if defined(__x86_64__)
  return processor_has_avx512() && __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

bool processor_has_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool processor_is_amd() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  if (processor_has_avx512() && avx512_kernels() != nullptr) {
    if (processor_has_vbmi()) {
      if (usable_amx_kernels() != nullptr) tables.push_back(usable_amx_kernels());
      const bool zen_first = processor_is_amd();
      if (!zen_first) tables.push_back(avx512_kernels());
      if (processor_has_bfloat16()) tables.push_back(avx512_zen_kernels());
      if (zen_first) tables.push_back(avx512_kernels());
    }
    tables.push_back(avx512_vnni_kernels());
  }
  if (processor_has_avx2() && avx2_kernels() != nullptr) tables.push_back(avx2_kernels());
  tables.push_back(plain_kernels());
  return tables;
}

const KernelTable* find_table(const std::string& name) {
  const KernelTable* emulated = amx_emulated_kernels();
  if (emulated != nullptr && name == emulated->name && processor_has_vbmi()) return emulated;
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
