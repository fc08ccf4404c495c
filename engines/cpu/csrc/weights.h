#pragma once
// Weights repacked once at load into panels of 16 output rows; the layouts every linear kernel reads.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "aligned_buffer.h"
#include "kernel_table.h"
#include "packed_scales.h"
#include "upcoming_read.h"

namespace nybble {

constexpr std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// One FP4 weight (or one of several stacked along the rows) as a checkpoint stores it. Borrowed for the repacking.
struct Fp4Shard {
  const std::uint8_t* packed;  // [num_rows, K/2], low nibble = even column
  const std::uint8_t* scales;  // [num_rows, K/group_size]
  const float* scale_table;    // [256] scale byte -> float32 multiplier
  std::int64_t num_rows;
};

/// Panel p holds 16 rows: codes [K/8][16 rows][4 bytes], where byte j of a row's four has the code of column 8s+j in
/// its low nibble and of column 8s+4+j in its high nibble; then the scales, in one of the forms of packed_scales.h.
/// Where all panels have the shared one they lie closer together. Rows that pad a shard to a multiple of 16 are zero
/// and never written to an output.
class Fp4Weight {
 public:
  /// `activation_scale` multiplies every W4A4 product: the part of the activations' scales that is the same for all
  /// blocks. Throws std::invalid_argument unless group_size is 16 or 32 and divides num_columns.
  Fp4Weight(const std::vector<Fp4Shard>& shards, std::int64_t num_columns, int group_size, bool round_to_bfloat16,
            float activation_scale = 1.0F);

  Fp4View view() const;
  UpcomingRead panels() const;
  std::int64_t num_rows() const { return num_rows_; }
  std::int64_t num_columns() const { return num_columns_; }
  int group_size() const { return group_size_; }
  bool round_to_bfloat16() const { return round_to_bfloat16_; }
  std::size_t num_bytes() const { return buffer_.num_bytes(); }
  /// Every scale is a finite E4M3 value times its shard's factor.
  bool e4m3_scales() const { return e4m3_scales_; }
  const std::vector<std::int64_t>& shard_rows() const { return shard_rows_; }
  /// Dequantized weight, float32 [num_rows, num_columns].
  void decode(float* out) const;

 private:
  struct ScaleTable {
    float multiplier[256];
    float quarter[256];  // 0.25 * multiplier / global_scale: turns a sum of doubled codes into a value
    float global_scale;  // the factor of E4M3 scales, else 1
    bool power_of_two;   // multiplier[b] is 2^(b - 127) for every byte that stands for a number
    bool e4m3;           // multiplier[b] is the E4M3 value b stands for times one factor, to float32 rounding
  };
  static void split_scales(ScaleTable& table);
  void plan_panels(const std::vector<Fp4Shard>& shards);
  template <typename Run>
  void for_panels(const std::vector<Fp4Shard>& shards, double panel_cost, const Run& run);
  ScaleRows scale_rows(const Fp4Shard& shard, std::int64_t first_row, const Fp4Panel& panel) const;
  std::size_t panel_offset(const Fp4Panel& panel) const;
  void repack_panel(const Fp4Shard& shard, std::int64_t first_row, Fp4Panel& panel);

  std::int64_t num_rows_ = 0;
  std::int64_t num_columns_;
  int group_size_;
  bool round_to_bfloat16_;
  float activation_scale_;
  bool e4m3_scales_ = false;
  bool shared_exponents_ = false;
  std::size_t panel_bytes_;
  std::size_t scale_offset_;
  std::vector<std::int64_t> shard_rows_;
  std::deque<ScaleTable> tables_;  // a deque: panels keep pointers into it
  std::vector<Fp4Panel> panels_;
  AlignedBuffer buffer_;
};

/// Unquantized weight [N, K] in panels of 16 rows, elements of the source's width, as DenseView has them.
class DenseWeight {
 public:
  DenseWeight(const void* values, std::int64_t num_rows, std::int64_t num_columns, ElementType element_type);

  DenseView view() const;
  UpcomingRead groups() const;  // of kDenseGroupPanels panels
  /// Rows [16 * panel, 16 * panel + 16) as float32 [16, num_columns]; those past the last are zeros.
  void decode_panel(std::int64_t panel, float* out) const;
  std::int64_t num_rows() const { return num_rows_; }
  std::int64_t num_columns() const { return num_columns_; }
  ElementType element_type() const { return element_type_; }
  std::size_t num_bytes() const { return buffer_.num_bytes(); }

 private:
  /// Where a panel lies: at `index` of the `num_panels` of the group that begins at `group_offset` bytes.
  struct Place {
    std::int64_t index, num_panels, group_offset;
  };
  Place place_of(std::int64_t panel) const;
  /// Columns that lie beside each other for every output.
  std::int64_t columns_together() const { return element_type_ == ElementType::kBfloat16 ? 2 : 1; }

  std::int64_t num_rows_;
  std::int64_t num_columns_;
  ElementType element_type_;
  AlignedBuffer buffer_;
};

}  // namespace nybble
