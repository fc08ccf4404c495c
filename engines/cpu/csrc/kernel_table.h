#pragma once
// What every instruction set implements: plain-data arguments and a table of functions over ranges of work units.
// A new path (AMX) is one more object library that fills one more KernelTable.

#include <cstddef>
#include <cstdint>

namespace nybble {

constexpr int kPanelRows = 16;
/// Activations are laid out in superblocks of 128 columns.
constexpr int kSuperblockColumns = 128;
/// Blocks that are summed with each other before they join the output's sum; see isa/linear_w4a4.cpp.
constexpr int summed_blocks(int group_size) { return group_size == 32 ? 4 : 2; }

/// Unquantized weights: panels of outputs that lie interleaved, and columns that are summed before their sum joins the
/// output's.
constexpr int kDenseGroupPanels = 2;
constexpr int kDenseBlockColumns = 128;

enum class ElementType : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kFloat8E4m3 = 3 };

struct Fp4Panel {
  std::int64_t first_output;   // column of `out` that lane 0 writes
  int num_lanes;               // lanes that exist, 1..16
  const float* scale_table;    // [256] multiplier
  const float* quarter_table;  // [256] 0.25 * multiplier without `global_scale`
  float global_scale;          // what the sums are multiplied by at their end: 1 but for NVFP4
  bool power_of_two_scales;    // scale byte b stands for 2^(b - 127): MXFP4
  bool e4m3_scales;            // scale byte b stands for its E4M3 value times global_scale, and all are finite: NVFP4
  bool shared_exponents;       // the form of the scales: see packed_scales.h
};

struct Fp4View {
  const std::uint8_t* data;
  std::size_t panel_bytes;
  std::size_t scale_offset;  // of the scales inside a panel
  const Fp4Panel* panels;
  std::int64_t num_panels;
  std::int64_t num_rows;
  std::int64_t num_columns;
  int group_size;
  bool round_to_bfloat16;
  float activation_scale;  // W4A4: what the activations' scales leave out
  bool e4m3_scales;        // of every panel
  bool shared_exponents;   // of every panel
};

/// Groups of kDenseGroupPanels panels; of an odd number the last lies alone. A group's columns are [K][panels][16], of
/// bfloat16 pairs of columns [K / 2, up][panels][16][2]; K is padded to even with zeros.
struct DenseView {
  const std::uint8_t* data;
  std::int64_t num_rows;
  std::int64_t num_columns;
  ElementType element_type;
};

constexpr std::int64_t dense_panel_bytes(const DenseView& weight) {
  return (weight.num_columns + 1) / 2 * (weight.element_type == ElementType::kFloat32 ? 128 : 64);
}

/// How far ahead of their use packed weights are fetched: into L2 early, where that pays, and into L1.
struct FetchAhead {
  std::int64_t far_bytes;  // 0: not at all
  std::int64_t near_bytes;
};

/// How packed weights are read: what caches want is measured.
struct WeightReading {
  FetchAhead fetch;
  bool in_pairs;  // of panels: MXFP4 W4A4 from a handful of rows on, with VBMI (isa/pair_tile_avx512.h)
};

// Sapphire Rapids: L2 takes more lines under way at once than L1.
constexpr WeightReading kReadInSteps{{16384, 3072}, false};
// Zen 5: the way through L2 costs bandwidth.
constexpr WeightReading kReadAtOnce{{0, 9216}, true};

// Fewer rows wait for memory, which likes one stream better.
constexpr std::int64_t kLeastPairRows = 7;

/// Whether a product of integers runs over pairs of panels.
inline bool takes_pairs(const WeightReading& reading, const Fp4View& weight, std::int64_t num_rows, int num_parts) {
  return reading.in_pairs && weight.shared_exponents && num_parts == 1 && num_rows >= kLeastPairRows;
}

struct W4A4Args {
  Fp4View weight;
  const std::int8_t* codes;    // [num_rows, K] E2M1 value times two
  const float* scales;         // [num_rows, K/group], times weight.activation_scale
  const std::int32_t* biases;  // [num_rows, K/group] -12 * sum of the block's codes; null for prepare_w4a4
  float* out;                  // [num_rows, N]
  std::int64_t num_rows;
};

struct Fp4F32Args;

/// Activations as integers, in the order of the integer products: superblock after superblock, rows inside. A slot is
/// superblock * stride + row.
struct IntegerRows {
  std::int64_t stride;         // the rows, and a few more: a row's superblocks, a power of two apart, would share sets
                               // of the caches
  std::int8_t* codes;          // [slots][num_parts][128]; W4A4 MXFP4: shifted to the superblock's lowest exponent
  float* scales;               // [slots]; not W4A16 NVFP4. W4A4 MXFP4: of the lowest exponent, negative where two
                               // products do not reach the highest one
  std::int32_t* biases;        // [slots] what unsigned weight codes add, negated
  std::uint8_t* regular;       // [slots] the superblock's blocks share an exponent; NVFP4: its scales are E4M3 values
  std::int32_t* block_biases;  // [slots][128/group] the same for a block by itself; W4A4 NVFP4: plus kMagicBits
  float* block_scales;         // [slots][128/group]; not W4A16 MXFP4
};

struct IntegerArgs {
  Fp4View weight;
  IntegerRows rows;
  const std::int8_t* block_codes;  // W4A4: the caller's codes [num_rows, K]
  float* out;                      // [num_rows, N]
  std::int64_t num_rows;
  int num_parts;     // 1: W4A4. 2: W4A16, 16-bit integers as high and low bytes
  bool all_regular;  // no slot is irregular
  bool vbmi;         // the processor permutes bytes across a register (AVX-512 VBMI)
  WeightReading reading;
  bool gated;  // as in Bfloat16Args
};

/// A bfloat16 tile, and the columns of weights that are unpacked together.
constexpr int kTileRows = 16;
constexpr int kTileColumns = 32;
constexpr int kTileRangeColumns = 8 * kTileColumns;

/// NVFP4 activations as bfloat16 tiles; see isa/bfloat16_rows.h.
struct Bfloat16Rows {
  std::uint16_t* tiles;    // [K / kTileRangeColumns, up][num_tiles][kTileRangeColumns / kTileColumns][16][32]
  std::uint8_t* fits;      // [num_rows] the tiles give the bits of the integer products
  std::int64_t num_tiles;  // of rows
  std::int64_t stride;     // IntegerRows', where rows are no tiles (isa/bfloat16_dots_avx512.cpp)
};

/// Panels that pass over a range of columns one after the other, at most, and the memory for their sums: half of L2.
constexpr std::int64_t kTileGroupPanels = 32;
constexpr std::int64_t kTileGroupBytes = std::int64_t{1} << 20;

struct Bfloat16Args {
  Fp4View weight;  // with e4m3_scales
  Bfloat16Rows rows;
  float* out;  // [num_rows, N]
  std::int64_t num_rows;
  bool quantized;  // W4A4: weight.activation_scale counts
  bool gated;  // out [num_rows, N / 2]: silu of the first half of the outputs times the second, which belong to each
               // other panel by panel; ranges are of the first half
};

struct Fp4F32Args {
  Fp4View weight;
  const float* x;  // [num_rows, K]
  float* out;      // [num_rows, N]
  std::int64_t num_rows;
};

struct DenseArgs {
  DenseView weight;
  const float*
      x;  // [K / kDenseBlockColumns, up][num_rows][kDenseBlockColumns]; behind the last column one zero if K is odd
  float* out;  // [num_rows, N]
  std::int64_t num_rows;
};

struct QuantizeArgs {
  const float* x;      // [num_rows, num_columns]
  std::int8_t* codes;  // [num_rows, num_columns]
  float* scales;       // [num_rows, num_columns/group]; NVFP4: E4M3 values, input_scale left out
  std::int64_t num_columns;
  float input_scale;  // NVFP4 only
  bool modelopt;      // NVFP4 only
};

struct RmsNormArgs {
  const float* x;       // [num_rows, num_columns]
  float* residual;      // null, or [num_rows, num_columns]: becomes residual + x, which is then normalised
  const float* weight;  // [num_columns]
  float* out;
  std::int64_t num_columns;
  float epsilon;
};

struct RopeArgs {
  float* q;  // [num_rows, num_heads, head_dim], rotated in place
  const std::int64_t* positions;
  const float* cos;  // [num_positions, head_dim/2]
  const float* sin;
  std::int64_t num_heads;
  std::int64_t head_dim;
};

struct SiluMulArgs {
  const float* gate_up;  // [num_rows, 2 * num_columns]
  float* out;            // [num_rows, num_columns]
  std::int64_t num_columns;
};

/// Where `keys_in_groups` (attention_layout.h), keys lie in groups of 16 slots, [head_dim / 2][16 slots][2], so that
/// products need no transposing. kFloat8E4m3: a block's rows of all heads are followed by a byte b a row,
/// [num_kv_heads, block_size]: its codes stand for 2^(b - 127) times their value, b = 255 for NaN. The last dimension
/// then is head_dim + 1.
struct KvCache {
  void* k;  // [num_blocks, num_kv_heads, block_size, head_dim]
  void* v;
  std::int64_t num_blocks;
  std::int64_t num_kv_heads;
  std::int64_t block_size;
  std::int64_t head_dim;
  ElementType element_type;  // float32, bfloat16 or E4M3
};

struct KvWriteArgs {
  KvCache cache;
  const float* k;  // [num_rows, num_kv_heads, head_dim]
  const float* v;
  const std::int64_t* slots;  // [num_rows]
};

/// Rows [first_row, first_row + num_rows) of one sequence at consecutive positions.
struct AttentionUnit {
  std::int64_t first_row;
  std::int64_t first_position;
  int num_rows;
  const std::int32_t* block_table;
};

/// A piece of work: heads [first_head, last_head) of the KV heads over partitions [first_partition, last_partition),
/// neither of them empty. More than one head only where `few_queries` (attention_layout.h) says so.
struct AttentionItem {
  const AttentionUnit* unit;
  std::int64_t first_head, last_head;
  std::int64_t first_partition, last_partition;
};

struct AttentionArgs {
  KvCache cache;
  const float* q;  // [num_rows, num_heads, head_dim]
  float* out;      // [num_rows, num_heads, head_dim]
  std::int64_t num_heads;
  float scale;
  std::int64_t sliding_window;  // 0: none
};

/// Positions whose keys are scored, and whose values are added, together.
constexpr int kAttentionTileKeys = 64;
/// Positions with a softmax of their own, a multiple of the tile: what is spread over threads for a single query.
constexpr int kAttentionPartitionKeys = 512;

/// Columns that the activations of a HeadScreen lie in blocks of; its weights are padded with zeros to whole blocks.
constexpr int kScreenBlockColumns = 128;
constexpr int kScreenBias = 128;                 // what is added to int8 weights
constexpr float kUnknownNorm = 3.40282347e+38F;  // of a row of which nothing can be said

/// What follows a panel's codes, by lane: output n lies within radius * |x| + reach * step of the screen's product,
/// |x| being the Euclidean norm of the row and step that of its integers.
struct ScreenBounds {
  float scale[kPanelRows];
  float radius[kPanelRows];
  float reach[kPanelRows];
};

/// Panels of int8 weights plus 128, [columns / 4][16 lanes][4], each followed by its ScreenBounds.
struct ScreenView {
  const std::uint8_t* data;
  std::int64_t panel_bytes;
  std::int64_t num_rows;
  std::int64_t num_columns;  // padded
};

/// Rows as 16-bit integers times a step, 256 * high + low.
struct ScreenRows {
  std::int8_t* codes;    // [num_columns / 128][num_rows][high, low][128]
  std::int32_t* biases;  // [num_rows][high, low]: what the 128 of the weights adds, negated
  float* steps;          // [num_rows]
  float* norms;          // [num_rows], rounded up, or kUnknownNorm
};

struct ScreenArgs {
  ScreenView weight;
  ScreenRows rows;
  std::int64_t num_rows;
  std::int64_t num_panels;
  FetchAhead fetch;
  float* floors;    // [num_rows][num_panels] what the largest of a panel's outputs is at least
  float* ceilings;  // [num_rows][num_panels] and at most
};

/// Instructions whose peak rate bounds a kernel; see machine_limits.h.
enum class LimitKind : int { kFloat32Fma = 0, kInt8Dot = 1, kBfloat16Dot = 2, kAmxInt8 = 3, kAmxBfloat16 = 4 };

/// The largest of a row of logits, the first of equal ones.
struct LogitsPeak {
  float logit;
  std::int64_t token_id;
  bool all_finite;  // of the row
};

struct KernelTable {
  const char* name;
  /// The first two are null where `fp4_linear_integer` is not.
  void (*w4a4_biases)(const std::int8_t* codes, std::int64_t num_blocks, int group_size, std::int32_t* biases);
  void (*fp4_linear_w4a4)(const W4A4Args&, std::int64_t panel_begin, std::int64_t panel_end);
  /// Integer products for any number of rows; null where W4A4 is `fp4_linear_w4a4` and W4A16 `fp4_linear_f32`.
  void (*prepare_w4a4)(const W4A4Args&, const IntegerRows&, std::int64_t row_begin, std::int64_t row_end);
  void (*prepare_w4a16)(const Fp4F32Args&, const IntegerRows&, std::int64_t row_begin, std::int64_t row_end);
  void (*fp4_linear_integer)(const IntegerArgs&, std::int64_t panel_begin, std::int64_t panel_end);
  bool vbmi;
  WeightReading reading;
  /// Bounds of the head's outputs (head_screen.h); null where there is none.
  void (*prepare_screen_row)(const float* x, std::int64_t num_columns, const ScreenArgs&, std::int64_t row);
  void (*screen_outputs)(const ScreenArgs&, std::int64_t panel_begin, std::int64_t panel_end);
  /// MXFP4 with many rows, the same bits; null where there are no int8 tiles.
  void (*fp4_linear_tiles)(const IntegerArgs&, std::int64_t panel_begin, std::int64_t panel_end);
  /// NVFP4 with many rows in bfloat16, on tiles or by dot products, the same bits again; null where there is neither.
  void (*tile_rows_w4a4)(const W4A4Args&, const Bfloat16Rows&, std::int64_t row_begin, std::int64_t row_end);
  void (*tile_rows_w4a16)(const Fp4F32Args&, const Bfloat16Rows&, std::int64_t row_begin, std::int64_t row_end);
  // `sums`: kTileGroupBytes of scratch memory. At most kTileGroupPanels panels; gated: half as many of the first half,
  // and those of the second half that belong to them.
  void (*fp4_linear_bfloat16)(const Bfloat16Args&, std::int64_t panel_begin, std::int64_t panel_end, float* sums);
  void (*fp4_linear_f32)(const Fp4F32Args&, std::int64_t panel_begin, std::int64_t panel_end);
  void (*dense_linear)(const DenseArgs&, std::int64_t group_begin, std::int64_t group_end);  // of panels
  void (*quantize_mxfp4)(const QuantizeArgs&, std::int64_t row_begin, std::int64_t row_end);
  void (*quantize_nvfp4)(const QuantizeArgs&, std::int64_t row_begin, std::int64_t row_end);
  void (*rms_norm)(const RmsNormArgs&, std::int64_t row_begin, std::int64_t row_end);
  void (*rope)(const RopeArgs&, std::int64_t row_begin, std::int64_t row_end);
  void (*silu_mul)(const SiluMulArgs&, std::int64_t row_begin, std::int64_t row_end);
  void (*softmax_row)(const float* logits, std::int64_t num_columns, float* out);
  LogitsPeak (*logits_peak)(const float* logits, std::int64_t num_tokens);  // num_tokens > 0
  /// Whole numbers: scale * exp((logit - maximum) * inverse_temperature), rounded to nearest even.
  void (*token_weights)(const float* logits, std::int64_t num_tokens, float maximum, float inverse_temperature,
                        float scale, float* weights);
  void (*add_scaled)(const float* x, float weight, std::int64_t num_columns, float* out);  // out += weight * x
  void (*to_float32)(const void* values, ElementType type, std::int64_t count, float* out);
  void (*kv_write)(const KvWriteArgs&, std::int64_t num_rows, std::int64_t head_begin, std::int64_t head_end);
  /// One item into its heads' states, `state_floats` apart. `next` is what memory is asked for meanwhile, or null.
  /// `workspace` and `states`: see attention_layout.h, 64-byte aligned.
  void (*attention)(const AttentionArgs&, const AttentionItem&, const AttentionItem* next, float* workspace,
                    float* states, std::int64_t state_floats);
  bool attention_tiles;  // `attention` runs on tiles where fits_tiles() (attention_layout.h)
  /// Merges states of ascending partitions, `state_floats` apart, into the first and writes the unit's rows of `out`.
  void (*attention_finish)(const AttentionArgs&, const AttentionUnit&, std::int64_t kv_head, float* states,
                           std::int64_t state_floats, std::int64_t num_states);
  /// Runs independent chains of one instruction; returns the operations done, 0 where there is no such instruction.
  double (*limit_operations)(LimitKind kind, std::int64_t iterations);
  void (*read_memory)(const std::uint8_t* data, std::int64_t num_bytes);
};

/// Null where this build or this processor lacks the instruction set.
const KernelTable* plain_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* avx512_zen_kernels();    // for AMD, with bfloat16 dot products
const KernelTable* avx512_vnni_kernels();   // without VBMI
const KernelTable* amx_emulated_kernels();  // AVX-512's with all that follows on emulated tiles, for tests
/// AVX-512's, with the integer products on int8 tiles, NVFP4 on bfloat16 tiles, or both.
const KernelTable* amx_kernels(bool int8_tiles, bool bfloat16_tiles);

}  // namespace nybble
