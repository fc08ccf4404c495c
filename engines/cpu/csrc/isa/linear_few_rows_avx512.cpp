// The integer products of linear_integer_avx512.cpp for a few rows: weights go from memory through registers into the
// products, nothing is stored in between. The same bits: integer sums have no order.
//
// Where a superblock shares an exponent, a block's sum is shifted instead of its codes.

#include "integer_weights_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

template <int Rows, int Parts, int Group>
class FewRows {
 public:
  FewRows(const IntegerArgs& args, int64_t first_row) : args_(args), first_row_(first_row) {}

  void run_panel(int64_t panel) {
    const Fp4View& weight = args_.weight;
    F16 acc[Rows];
    for (int r = 0; r < Rows; ++r) acc[r] = splat(0.0F);
    for (int64_t k = 0; k < weight.num_columns; k += kSuperblockColumns) {
      const int64_t superblock = k / kSuperblockColumns;
      const PanelSource source = panel_source(weight, panel, superblock);
      prefetch_scales(weight, source, superblock);
      const int num_blocks = static_cast<int>(superblock_columns(weight.num_columns, superblock) / Group);
      __m128i lowest;
      if (Group == 32 && rows_regular(superblock) && share_exponent(source, num_blocks, &lowest)) {
        add_shared(source, superblock, num_blocks, lowest, acc);
      } else if (Group == 16 && args_.weight.e4m3_scales && args_.all_regular) {
        add_blocks<BlockScaling::kFusedClamped>(source, superblock, num_blocks, acc);
      } else {
        add_blocks<BlockScaling::kSeparateClamped>(source, superblock, num_blocks, acc);
      }
    }
    const F16 factor = output_factor<Parts>(weight, panel);
    for (int r = 0; r < Rows; ++r) {
      store_partial(args_.out + (first_row_ + r) * weight.num_rows + weight.panels[panel].first_output, acc[r] * factor,
                    weight.panels[panel].num_lanes);
    }
  }

 private:
  bool rows_regular(int64_t superblock) const {
    if (args_.all_regular) return true;
    for (int r = 0; r < Rows; ++r) {
      if (!args_.rows.regular[superblock * args_.num_rows + first_row_ + r]) return false;
    }
    return true;
  }

  /// Block sums with their biases, [row].
  static inline void block_sums(const std::uint8_t* packed, const std::int8_t* const (&codes)[Rows], int first_column,
                                const std::int32_t (&biases)[Rows], __m512i (&sums)[Rows]) {
    const __m512i table = biased_codes();
    __m512i parts[Rows][Parts];
    for (int r = 0; r < Rows; ++r) {
      parts[r][0] = _mm512_setzero_si512();
      parts[r][Parts - 1] = _mm512_set1_epi32(biases[r]);
    }
    for (int step = 0; step < Group / 8; ++step) {
      prefetch_far(packed + step * 64);
      prefetch_near(packed + step * 64);
      const __m512i raw = _mm512_load_si512(packed + step * 64);
      const __m512i low = _mm512_shuffle_epi8(table, low_nibbles(raw));
      const __m512i high = _mm512_shuffle_epi8(table, low_nibbles(_mm512_srli_epi16(raw, 4)));
      for (int r = 0; r < Rows; ++r) {
        for (int part = 0; part < Parts; ++part) {
          const std::int8_t* x = codes[r] + part * kSuperblockColumns + first_column + step * 8;
          dot_product(parts[r][part], low, x);
          dot_product(parts[r][part], high, x + 4);
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      sums[r] = parts[r][Parts - 1];
      if (Parts == 2) sums[r] = _mm512_add_epi32(sums[r], _mm512_slli_epi32(parts[r][0], 8));
    }
  }

  void add_shared(const PanelSource& source, int64_t superblock, int num_blocks, __m128i lowest, F16 (&acc)[Rows]) {
    const int64_t slot = superblock * args_.num_rows + first_row_;
    const int64_t blocks_per_row = args_.weight.num_columns / Group;
    const std::int32_t* biases =
        args_.rows.shared_block_biases + first_row_ * blocks_per_row + superblock * (kSuperblockColumns / Group);
    const std::int8_t* codes[Rows];
    __m512i totals[Rows];
    for (int r = 0; r < Rows; ++r) {
      codes[r] = args_.rows.codes + (slot + r) * Parts * kSuperblockColumns;
      totals[r] = _mm512_setzero_si512();
    }
    for (int b = 0; b < num_blocks; ++b) {
      std::int32_t block_biases[Rows];
      for (int r = 0; r < Rows; ++r) block_biases[r] = biases[r * blocks_per_row + b];
      __m512i sums[Rows];
      block_sums(source.codes + b * (Group * 8), codes, b * Group, block_biases, sums);
      const __m512i shifts = lane_shifts(source, b, lowest);
      for (int r = 0; r < Rows; ++r) totals[r] = _mm512_add_epi32(totals[r], _mm512_sllv_epi32(sums[r], shifts));
    }
    const F16 quarter = quarter_of_exponent(lowest);
    for (int r = 0; r < Rows; ++r) {
      acc[r] = fma(F16{_mm512_cvtepi32_ps(totals[r])}, quarter * splat(args_.rows.scales[slot + r]), acc[r]);
    }
  }

  template <BlockScaling Scaling>
  void add_blocks(const PanelSource& source, int64_t superblock, int num_blocks, F16 (&acc)[Rows]) {
    const int64_t num_columns = args_.weight.num_columns;
    const int64_t slot = superblock * args_.num_rows + first_row_;
    const int64_t blocks_per_row = num_columns / Group;
    const int64_t first_block = first_row_ * blocks_per_row + superblock * (kSuperblockColumns / Group);
    const std::int8_t* codes[Rows];
    F16 parts[Rows];
    for (int r = 0; r < Rows; ++r) {
      codes[r] = Parts == 1 ? args_.block_codes + (first_row_ + r) * num_columns + superblock * kSuperblockColumns
                            : args_.rows.codes + (slot + r) * Parts * kSuperblockColumns;
    }
    for (int b = 0; b < num_blocks; ++b) {
      std::int32_t biases[Rows];
      for (int r = 0; r < Rows; ++r) biases[r] = args_.rows.block_biases[first_block + r * blocks_per_row + b];
      __m512i sums[Rows];
      block_sums(source.codes + b * (Group * 8), codes, b * Group, biases, sums);
      const F16 quarter = quarter_scales(source, b);
      for (int r = 0; r < Rows; ++r) {
        const float scale = has_block_scales<Parts, Group>() ? args_.block_scales[first_block + r * blocks_per_row + b]
                                                             : args_.rows.scales[slot + r];
        const F16 sum = F16{_mm512_cvtepi32_ps(sums[r])};
        parts[r] = add_block<Scaling>(sum, quarter * splat(scale), parts[r], b % summed_blocks(Group) == 0);
      }
      if ((b + 1) % summed_blocks(Group) != 0 && b + 1 != num_blocks) continue;
      for (int r = 0; r < Rows; ++r) acc[r] = acc[r] + parts[r];
    }
  }

  const IntegerArgs& args_;
  int64_t first_row_;
};

template <int Rows, int Parts, int Group>
void run_rows(const IntegerArgs& args, int64_t row, int64_t panel) {
  if (args.num_rows - row == Rows) {
    FewRows<Rows, Parts, Group>(args, row).run_panel(panel);
  } else if constexpr (Rows > 1) {
    run_rows<Rows - 1, Parts, Group>(args, row, panel);
  }
}

template <int Parts, int Group>
void run_panels(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  constexpr int kMaxRows = 8 / Parts;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    int64_t row = 0;
    for (; row + kMaxRows < args.num_rows; row += kMaxRows) FewRows<kMaxRows, Parts, Group>(args, row).run_panel(panel);
    run_rows<kMaxRows, Parts, Group>(args, row, panel);
  }
}

}  // namespace

void fp4_linear_few_rows(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.num_parts == 2) {
    if (args.weight.group_size == 32) return run_panels<2, 32>(args, panel_begin, panel_end);
    return run_panels<2, 16>(args, panel_begin, panel_end);
  }
  if (args.weight.group_size == 32) return run_panels<1, 32>(args, panel_begin, panel_end);
  return run_panels<1, 16>(args, panel_begin, panel_end);
}

}  // namespace nybble::NYBBLE_ISA
