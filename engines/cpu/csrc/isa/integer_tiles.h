#pragma once
// MXFP4 weights times integer activations on int8 tiles of 16 rows x 64 bytes (amx_tiles.h), for many rows: the bits of
// linear_integer_avx512.cpp.
//
// A group of one or two panels (16 or 32 outputs) is unpacked to bytes one superblock at a time, into L1; all rows of a
// block of rows then run over it. The running sums of the block of rows stay in L1 or L2.

#include "by_block_avx512.h"
#include "shifted_codes_avx512.h"
#include "spread_rows_avx512.h"

namespace nybble::NYBBLE_ISA {

namespace {

constexpr int kVectors = kSuperblockColumns / 4;  // of 4 columns x 16 outputs
constexpr int kPanelGroup = 2;
constexpr int64_t kTileStep = 32;  // rows of two tiles
constexpr int64_t kMaxBlockRows = 192;
constexpr int64_t kRowBlockBytes = 768 << 10;  // activation codes of a block of rows: part of L2

/// One superblock of a group of panels, unpacked to shifted codes as signed bytes.
template <int Panels>
struct Unpacked {
  alignas(64) std::uint8_t codes[kVectors][Panels][64];
  F16 quarters[Panels];
};

/// False, and nothing to be used, where the panel's exponents are not to be shared.
template <int Panels>
bool unpack_panel(const PanelSource& source, int num_blocks, int p, Unpacked<Panels>& out) {
  alignas(kSharedScaleBytes) std::uint8_t own[kSharedScaleBytes];
  const std::uint8_t* shared = shared_scales(source, num_blocks, own);
  if (shared == nullptr) return false;
  const CodeShifter<true, 0> shifter;  // processors with tiles have VBMI
  BlockShifts<true, 0> shifts(shared);
  for (int b = 0; b < num_blocks; ++b) {
    const BlockShift<true> shift = shifts.next();
    for (int step = 0; step < 4; ++step) {
      const std::uint8_t* codes = source.codes + (b * 4 + step) * 64;
      prefetch_far(codes);
      prefetch_near(codes);
      const __m512i raw = _mm512_load_si512(codes);
      std::uint8_t (*target)[Panels][64] = out.codes + (b * 4 + step) * 2;
      _mm512_store_si512(target[0][p], shifter.low(raw, shift));
      _mm512_store_si512(target[1][p], shifter.high(raw, shift));
    }
  }
  out.quarters[p] = shared_quarters(shared);
  return true;
}

template <class Tiles, int Panels, int Parts>
class PanelGroup {
 public:
  PanelGroup(const IntegerArgs& args, int64_t first_panel) : args_(args), first_panel_(first_panel) {}

  void run(int64_t row_begin, int64_t row_end) {
    row_begin_ = row_begin;
    row_end_ = row_end;
    for (int p = 0; p < Panels; ++p) {
      for (int64_t row = row_begin; row < row_end; ++row) *sums(p, row) = splat(0.0F);
    }
    const int64_t num_columns = args_.weight.num_columns;
    for (int64_t k = 0; k < num_columns; k += kSuperblockColumns) run_superblock(k / kSuperblockColumns);
    for (int p = 0; p < Panels; ++p) {
      for (int64_t row = row_begin; row < row_end; ++row) {
        store_outputs<1, Parts>(args_, row, first_panel_ + p, sums(p, row));
      }
    }
  }

 private:
  F16* sums(int p, int64_t row) { return sums_[p] + (row - row_begin_); }

  void run_superblock(int64_t superblock) {
    num_blocks_ = static_cast<int>(superblock_columns(args_.weight.num_columns, superblock) / 32);
    PanelSource sources[Panels];
    bool shared = true;
    for (int p = 0; p < Panels; ++p) {
      sources[p] = panel_source(args_.weight, first_panel_ + p, superblock);
      prefetch_scales(args_.weight, sources[p], superblock);
      shared = shared && unpack_panel(sources[p], num_blocks_, p, unpacked_);
    }
    if (shared) {
      for (int64_t row = row_begin_; row < row_end_; row += kTileStep / Parts) run_tiles(superblock, row);
      if (args_.all_regular) return;
    }
    for (int64_t row = row_begin_; row < row_end_; row += kTileStep) {
      const int num_rows = static_cast<int>(min64(kTileStep, row_end_ - row));
      // Rows whose own exponents do not fit were left out of the shared product.
      std::uint32_t left = shared ? irregular_rows(args_, row, num_rows, superblock) : all_rows(num_rows);
      if (Parts == 1 && shared) left = gather_spread_rows(superblock, row, left);
      for (int p = 0; left != 0 && p < Panels; ++p) {
        add_by_block<Parts, 32>(args_, row, left, sources[p], superblock, num_blocks_, sums(p, row));
      }
    }
    if (spread_.count() != 0) run_spread_rows(superblock);
  }

  /// Takes the rows first_row + i of bits i that two parts are enough for, multiplies whenever a tile is full, and
  /// returns the others.
  std::uint32_t gather_spread_rows(int64_t superblock, int64_t first_row, std::uint32_t which) {
    std::uint32_t others = 0;
    for (; which != 0; which &= which - 1) {
      const int64_t row = first_row + __builtin_ctz(which);
      if (!is_spread(args_.rows, superblock * args_.num_rows + row)) {
        others |= which & (0U - which);
        continue;
      }
      spread_.add(args_, row, superblock, num_blocks_);
      if (spread_.count() == SpreadRows::kMaxRows) run_spread_rows(superblock);
    }
    return others;
  }

  void run_spread_rows(int64_t superblock) {
    multiply(spread_.first_parts(), spread_.second_parts(), SpreadRows::kRowBytes);
    for (int p = 0; p < Panels; ++p) {
      for (int i = 0; i < spread_.count(); ++i) {
        add_sum(superblock, spread_.row(i), p, joined_parts<kPartShift>(p, i));
      }
    }
    spread_.clear();
  }

  /// products_ = two tiles of activations, rows `row_bytes` apart, times one or two of weights.
  void multiply(const std::int8_t* first, const std::int8_t* second, int64_t row_bytes) {
    Tiles::zero();
    for (int k = 0; k < num_blocks_ * 32; k += 64) {  // columns past the last are zeros in the activations
      Tiles::template multiply<Panels>(first + k, second + k, row_bytes, unpacked_.codes[k / 4][0], Panels * 64);
    }
    Tiles::template store<Panels>(products_);
  }

  /// Row r of both tiles, the first one's 2^Shift times as much worth.
  template <int Shift>
  __m512i joined_parts(int p, int64_t r) const {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(products_[p][r]), Shift),
                            _mm512_load_si512(products_[2 + p][r]));
  }

  void add_sum(int64_t superblock, int64_t row, int p, __m512i sum) {
    const F16 scale = unpacked_.quarters[p] * splat(args_.rows.scales[superblock * args_.num_rows + row]);
    F16* out = sums(p, row);
    *out = fma(F16{_mm512_cvtepi32_ps(sum)}, scale, *out);
  }

  /// 32 rows (W4A4) or 16 rows in two parts. Rows past the end are multiplied too (there is room for them) and left
  /// out.
  void run_tiles(int64_t superblock, int64_t row) {
    const int64_t slot = superblock * args_.num_rows + row;
    const std::int8_t* first = args_.rows.codes + slot * Parts * kSuperblockColumns;
    multiply(first, first + (Parts == 2 ? 1 : 16) * kSuperblockColumns, Parts * kSuperblockColumns);
    const int64_t rows = min64(kTileStep / Parts, row_end_ - row);
    for (int p = 0; p < Panels; ++p) {
      for (int64_t r = 0; r < rows; ++r) {
        add_sum(superblock, row + r, p,
                Parts == 2 ? joined_parts<8>(p, r) : _mm512_load_si512(products_[r / 16 * 2 + p][r % 16]));
      }
    }
  }

  const IntegerArgs& args_;
  int64_t first_panel_;
  int64_t row_begin_ = 0, row_end_ = 0;
  int num_blocks_ = 0;
  Unpacked<Panels> unpacked_;
  SpreadRows spread_;
  alignas(64) std::int32_t products_[4][16][16];
  F16 sums_[Panels][kMaxBlockRows];
};

inline int64_t rows_per_block(const IntegerArgs& args) {
  const int64_t fitting = kRowBlockBytes / (args.weight.num_columns * args.num_parts) / kTileStep * kTileStep;
  return max64(2 * kTileStep, min64(kMaxBlockRows, fitting));
}

template <class Tiles, int Parts>
void run_panel_groups(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t block_rows = rows_per_block(args);
  for (int64_t row = 0; row < args.num_rows; row += block_rows) {
    const int64_t row_end = min64(args.num_rows, row + block_rows);
    int64_t panel = panel_begin;
    for (; panel + kPanelGroup <= panel_end; panel += kPanelGroup) {
      PanelGroup<Tiles, kPanelGroup, Parts>(args, panel).run(row, row_end);
    }
    for (; panel < panel_end; ++panel) PanelGroup<Tiles, 1, Parts>(args, panel).run(row, row_end);
  }
}

template <class Tiles>
void run_integer_tiles(const IntegerArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.num_parts == 2) return run_panel_groups<Tiles, 2>(args, panel_begin, panel_end);
  run_panel_groups<Tiles, 1>(args, panel_begin, panel_end);
}

}  // namespace

}  // namespace nybble::NYBBLE_ISA
