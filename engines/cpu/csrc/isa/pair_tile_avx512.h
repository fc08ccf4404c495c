#pragma once
// A tile of rows times two panels of MXFP4 weights (W4A4), superblocks without shared exponents included.

#include "panel_pairs_avx512.h"

namespace nybble::NYBBLE_ISA {

/// The outputs of rows [first_row, first_row + Rows) and of `panel` and the next one, or of gates and what they let
/// through. All scales have the shared form.
template <int Rows>
class PairTile {
 public:
  PairTile(const IntegerArgs& args, int64_t first_row, int64_t panel)
      : args_(args),
        first_row_(first_row),
        panels_{panel, args.gated ? gated_panel(args.weight, panel) : panel + 1},
        num_superblocks_(count_superblocks(args.weight.num_columns)) {
    clear_sums(&sums_[0][0], 2 * Rows);
  }

  void run() {
    for (int64_t begin = 0, end = 0; end < num_superblocks_; begin = end) {
      std::uint32_t irregular = 0;
      while (end < num_superblocks_ && irregular == 0) irregular = irregular_rows(args_, first_row_, Rows, end++);
      add_pair_superblocks<Rows>(walk(begin, end), sums_);
      if (irregular != 0) add_rows_by_block(end - 1, irregular);  // they added nothing to the shared product
    }
    if (args_.gated) return store_gated<Rows, 1>(args_, first_row_, panels_[0], sums_[0], sums_[1]);
    for (int p = 0; p < 2; ++p) store_outputs<Rows, 1>(args_, first_row_, panels_[p], sums_[p]);
  }

 private:
  PairWalk walk(int64_t begin, int64_t end) const {
    const PanelSource source = panel_source(args_.weight, panels_[0], begin);
    const int64_t slot = begin * args_.rows.stride + first_row_;
    constexpr int64_t kPairBytes = 2 * kSuperblockBytes;
    const int64_t codes_ahead = (args_.reading.fetch.near_bytes + kPairBytes - 1) / kPairBytes;
    return {.num_superblocks = end - begin,
            .num_last_blocks = num_blocks(end - 1),
            .codes = source.codes,
            .scales = source.scales,
            .panel_bytes = (panels_[1] - panels_[0]) * static_cast<int64_t>(args_.weight.panel_bytes),
            .row_codes = args_.rows.codes + slot * kSuperblockColumns,
            .row_biases = args_.rows.biases + slot,
            .row_scales = args_.rows.scales + slot,
            .row_codes_bytes = args_.rows.stride * kSuperblockColumns,
            .row_values_bytes = args_.rows.stride * 4,
            .fetch_codes = fetch(codes_ahead, kSuperblockBytes, end),
            .fetch_scales = fetch(kPrefetchSuperblocks, kSharedScaleBytes, end)};
  }

  int num_blocks(int64_t superblock) const {
    return static_cast<int>(superblock_columns(args_.weight.num_columns, superblock) / 32);
  }

  /// `count` superblocks ahead, for a walk that ends before superblock `end`.
  PairFetch fetch(int64_t count, int64_t superblock_bytes, int64_t end) const {
    const int64_t next_panels = (args_.gated ? 1 : 2) * static_cast<int64_t>(args_.weight.panel_bytes);
    return {count * superblock_bytes, next_panels + (count - num_superblocks_) * superblock_bytes,
            count - (num_superblocks_ - end)};
  }

  void add_rows_by_block(int64_t superblock, std::uint32_t rows) {
    for (int p = 0; p < 2; ++p) {
      const PanelSource source = panel_source(args_.weight, panels_[p], superblock);
      add_by_block<1, 32>(args_, first_row_, rows, source, superblock, num_blocks(superblock), sums_[p]);
    }
  }

  const IntegerArgs& args_;
  int64_t first_row_, panels_[2], num_superblocks_;
  F16 sums_[2][Rows];
};

}  // namespace nybble::NYBBLE_ISA
