// Standalone check of every kernel on every instruction set, for sanitizers and for processors without our Python
// tests at hand (cross-compiled, under an emulator). Exits 0 when all checks hold. See ../README.md.

#include "kernel_tests.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "amx_checks.h"
#include "amx_support.h"
#include "checks.h"
#include "decoder_pass_tests.h"
#include "isa.h"
#include "thread_pool.h"
#include "thread_pool_tests.h"

namespace nybble {

namespace {

void test_everything() {
  test_fp4_linears();
  test_gated_products();
  test_half_types();
  test_head_screen();
  test_quantize_ties();
  test_nvfp4_thresholds();
  test_rowwise();
  test_paged_attention();
  test_sampling();
  check(decoder_pass_is_consistent(), "decoder pass: whole, in parts, beside another sequence");
}

/// What does not depend on the instruction set in use.
void test_once() {
  check(shares_are_fetched_once(), "the beginning of a share fetched once");
  check(units_are_done_once(), "every unit of a parallel region once");
}

void test_emulated_tiles() {
  check(int8_tiles_agree(*amx_emulated_kernels()), "self-check of int8 tiles");
  check(bfloat16_tiles_agree(*amx_emulated_kernels()), "self-check of bfloat16 tiles");
  check(attention_tiles_agree(*amx_emulated_kernels()), "self-check of attention on tiles");
  check(!attention_tiles_agree(*avx512_kernels()), "self-check of attention: another order of sums");
}

}  // namespace

}  // namespace nybble

int main() {
  std::vector<std::string> isas = nybble::available_isas();
  if (std::find(isas.begin(), isas.end(), "avx512") != isas.end()) {
    isas.emplace_back("amx-emulated");
    nybble::test_emulated_tiles();
  }
  nybble::test_once();
  std::printf("AMX: %s\n", nybble::amx_status().c_str());
  for (const std::string& isa : isas) {
    nybble::set_isa(isa);
    for (const int threads : {1, 3}) {
      nybble::set_num_threads(threads);
      nybble::test_everything();
    }
    std::printf("%s: done\n", isa.c_str());
  }
  const int num_failures = nybble::num_failures();
  if (num_failures > 0) std::printf("%d checks failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
