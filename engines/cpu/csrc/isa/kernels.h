#pragma once
// The functions one instruction set provides; table.cpp puts them into its KernelTable.

#include "simd.h"

namespace nybble::NYBBLE_ISA {

constexpr float kMaxFloat = 3.40282347e+38F;

void w4a4_biases(const std::int8_t* codes, int64_t num_blocks, int group_size, std::int32_t* biases);
void fp4_linear_w4a4(const W4A4Args& args, int64_t panel_begin, int64_t panel_end);
void prepare_w4a4(const W4A4Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end);
void prepare_w4a16(const Fp4F32Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end);
void prepare_w4a16_rounded(const Fp4F32Args& args, const IntegerRows& rows, int64_t row_begin, int64_t row_end);
void tile_rows_w4a4(const W4A4Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end);
void tile_rows_w4a16(const Fp4F32Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end);
void fp4_linear_integer(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end);
void dot_rows_w4a16(const Fp4F32Args& args, const Bfloat16Rows& rows, int64_t row_begin, int64_t row_end);
void fp4_linear_bfloat16_dots(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums);
void fp4_linear_amx(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end);
void fp4_linear_amx_emulated(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end);
void fp4_linear_bfloat16_amx(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums);
void fp4_linear_bfloat16_amx_emulated(const Bfloat16Args& args, int64_t panel_begin, int64_t panel_end, float* sums);
double limit_operations_amx_int8(LimitKind kind, int64_t iterations);
double limit_operations_amx_bfloat16(LimitKind kind, int64_t iterations);
double limit_operations_amx(LimitKind kind, int64_t iterations);
void fp4_linear_f32(const Fp4F32Args& args, int64_t panel_begin, int64_t panel_end);
void dense_linear(const DenseArgs& args, int64_t group_begin, int64_t group_end);
void prepare_screen_row(const float* x, int64_t num_columns, const ScreenArgs& args, int64_t row);
void screen_outputs(const ScreenArgs& args, int64_t panel_begin, int64_t panel_end);
void quantize_mxfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end);
void quantize_nvfp4(const QuantizeArgs& args, int64_t row_begin, int64_t row_end);
void rms_norm(const RmsNormArgs& args, int64_t row_begin, int64_t row_end);
void rope(const RopeArgs& args, int64_t row_begin, int64_t row_end);
void silu_mul(const SiluMulArgs& args, int64_t row_begin, int64_t row_end);
void softmax_row(const float* logits, int64_t num_columns, float* out);
LogitsPeak logits_peak(const float* logits, int64_t num_tokens);
void token_weights(const float* logits, int64_t num_tokens, float maximum, float inverse_temperature, float scale,
                   float* weights);
void add_scaled(const float* x, float weight, int64_t num_columns, float* out);
void to_float32(const void* values, ElementType type, int64_t count, float* out);
void kv_write(const KvWriteArgs& args, int64_t num_rows, int64_t head_begin, int64_t head_end);
void attention(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
               float* states, int64_t state_floats);
void attention_amx(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* workspace,
                   float* states, int64_t state_floats);
void attention_amx_emulated(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next,
                            float* workspace, float* states, int64_t state_floats);
void attention_finish(const AttentionArgs& args, const AttentionUnit& unit, int64_t kv_head, float* states,
                      int64_t state_floats, int64_t num_states);
double limit_operations(LimitKind kind, int64_t iterations);
void read_memory(const std::uint8_t* data, int64_t num_bytes);

}  // namespace nybble::NYBBLE_ISA
