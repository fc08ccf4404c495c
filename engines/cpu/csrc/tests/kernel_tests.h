#pragma once
// What kernel_tests runs on every instruction set and several numbers of threads; a failure goes through check().

namespace nybble {

void test_fp4_linears();
void test_gated_products();
void test_half_types();
void test_head_screen();
void test_quantize_ties();
void test_nvfp4_thresholds();
void test_rowwise();
void test_paged_attention();
void test_sampling();

}  // namespace nybble
