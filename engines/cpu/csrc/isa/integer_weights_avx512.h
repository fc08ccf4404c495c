#pragma once
// Reading a packed panel with AVX-512: unpacking, scales, prefetching. Shared by the integer kernels.

#include "block_scales.h"
#include "integer_rows.h"
#include "lanes.h"
#include "silu.h"

namespace nybble::NYBBLE_ISA {

constexpr int64_t kPrefetchSuperblocks = 8;  // for scale bytes, which lie apart from the codes

/// The panel whose outputs a panel of gates lets through.
inline int64_t gated_panel(const Fp4View& weight, int64_t panel) { return panel + weight.num_panels / 2; }

constexpr int64_t kSuperblockBytes = kSuperblockColumns * 8;  // of a panel's codes

/// NVFP4's on every processor: offsets in registers would cost the sums theirs.
constexpr FetchAhead kFetchNvfp4{16384, 6144};

/// One superblock of one panel.
struct PanelSource {
  const std::uint8_t* codes;
  const std::uint8_t* scales;  // in the panel's form
  const Fp4Panel* panel;

  void advance(int scale_bytes) {
    codes += kSuperblockBytes;
    scales += scale_bytes;
  }
};

inline PanelSource panel_source(const Fp4View& weight, int64_t panel, int64_t superblock) {
  const std::uint8_t* data = weight.data + static_cast<std::size_t>(panel) * weight.panel_bytes;
  const Fp4Panel* info = weight.panels + panel;
  const int64_t scales = superblock * superblock_scale_bytes(weight.group_size, info->shared_exponents);
  return {data + superblock * kSuperblockBytes, data + weight.scale_offset + scales, info};
}

/// What the sums of a panel are multiplied by.
template <int Parts>
inline F16 output_factor(const Fp4View& weight, int64_t panel) {
  const float global_scale = weight.panels[panel].global_scale;
  return splat(Parts == 1 ? global_scale * weight.activation_scale : global_scale);
}

/// Writes a panel's outputs of rows [first_row, first_row + Rows).
template <int Rows, int Parts>
inline void store_outputs(const IntegerArgs& args, int64_t first_row, int64_t panel, const F16* sums) {
  const Fp4Panel& info = args.weight.panels[panel];
  const F16 factor = output_factor<Parts>(args.weight, panel);
  for (int r = 0; r < Rows; ++r) {
    float* out = args.out + (first_row + r) * args.weight.num_rows + info.first_output;
    store_partial(out, sums[r] * factor, info.num_lanes);
  }
}

/// Writes what a panel's outputs, gates, let through of another's.
template <int Rows, int Parts>
inline void store_gated(const IntegerArgs& args, int64_t first_row, int64_t panel, const F16* gates,
                        const F16* values) {
  const Fp4Panel& info = args.weight.panels[panel];
  const F16 gate_factor = output_factor<Parts>(args.weight, panel);
  const F16 factor = output_factor<Parts>(args.weight, gated_panel(args.weight, panel));
  const int64_t width = args.weight.num_rows / 2;
  for (int r = 0; r < Rows; ++r) {
    float* out = args.out + (first_row + r) * width + info.first_output;
    store_partial(out, silu_mul(gates[r] * gate_factor, values[r] * factor), info.num_lanes);
  }
}

/// Activations have a scale per block, or one per superblock (W4A16 MXFP4).
template <int Parts, int Group>
constexpr bool has_block_scales() {
  return Parts == 1 || Group == 16;
}

/// The biases of blocks hold kMagicBits as well.
template <int Parts, int Group>
constexpr bool has_magic_biases() {
  return Parts == 1 && Group == 16;
}

inline __m512i low_nibbles(__m512i raw) { return _mm512_and_si512(raw, _mm512_set1_epi8(15)); }

// Instructions, not builtins: GCC 12 takes a function of nothing but builtin prefetches for one without effect, and
// may drop its calls.
inline void prefetch_line(const void* line) { asm volatile("prefetcht0 %a0" : : "p"(line)); }

inline void prefetch_to_l2(const std::uint8_t* line) { asm volatile("prefetcht1 %a0" : : "p"(line)); }

/// Ahead of a line of codes.
inline void prefetch_ahead(const FetchAhead& fetch, const std::uint8_t* codes) {
  prefetch_to_l2(codes + fetch.far_bytes);
  prefetch_line(codes + fetch.near_bytes);
}

/// Scales of a superblock further on, in this panel or at the same place past the end of the next one's codes. And
/// what lies as far ahead of the scales as codes are fetched: codes of a next panel, which fetching ahead of this one's
/// codes and of the next one's leaves out.
inline void prefetch_scales(const Fp4View& weight, const FetchAhead& fetch, const PanelSource& source,
                            int64_t superblock) {
  const int64_t superblock_bytes = superblock_scale_bytes(weight.group_size, source.panel->shared_exponents);
  const std::uint8_t* ahead = source.scales + kPrefetchSuperblocks * superblock_bytes;
  if ((superblock + kPrefetchSuperblocks) * kSuperblockColumns >= weight.num_columns) ahead += weight.scale_offset;
  for (int64_t i = 0; i < superblock_bytes; i += 64) {
    prefetch_line(ahead + i);
    prefetch_ahead(fetch, source.scales + i);
  }
}

/// Calls run(superblock, its place in the panel, number of blocks) for the superblocks of a panel of NVFP4 weights.
template <typename Run>
inline void for_each_superblock(const Fp4View& weight, int64_t panel, const Run& run) {
  PanelSource source = panel_source(weight, panel, 0);
  const int64_t num_superblocks = count_superblocks(weight.num_columns);
  for (int64_t superblock = 0; superblock < num_superblocks; ++superblock) {
    prefetch_scales(weight, kFetchNvfp4, source, superblock);
    run(source, superblock, static_cast<int>(superblock_columns(weight.num_columns, superblock) / 16));
    source.advance(superblock_scale_bytes(16, false));
  }
}

/// Doubled codes plus 12, by code, in each 16 bytes.
inline __m512i biased_codes() {
  return _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

/// Entry i of `table` for each byte's low six bits i (VBMI).
inline __m512i look_up(__m512i indices, __m512i table) {
  __m512i out;
  asm("vpermb %2, %1, %0" : "=v"(out) : "v"(indices), "v"(table));
  return out;
}

/// Both halves of 64 packed bytes as doubled codes plus 12.
template <bool Vbmi>
class CodeUnpacker {
 public:
  CodeUnpacker() : table_(biased_codes()) {}

  // Six bits of an index count with VBMI: the table has 16 entries four times.
  __m512i low(__m512i raw) const { return Vbmi ? look_up(raw, table_) : _mm512_shuffle_epi8(table_, low_nibbles(raw)); }
  __m512i high(__m512i raw) const { return low(_mm512_srli_epi16(raw, 4)); }

 private:
  __m512i table_;
};

inline __mmask16 lane_mask(const Fp4Panel& panel) { return static_cast<__mmask16>((1U << panel.num_lanes) - 1U); }

/// 0.25 * 2^(byte - 127) for exponents that may be shared.
inline F16 quarter_of_exponent(__m128i bytes) {
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(2)), 23))};
}

/// Quarter scales of a superblock's block. E4M3 times one factor is a table of mantissas and an exponent to add;
/// anything else is looked up whole.
inline F16 quarter_scales(const PanelSource& source, int block) {
  if (source.panel->shared_exponents) return shared_block_scales(source.scales, block, -2);
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source.scales + block * 16)));
  if (!source.panel->e4m3_scales) return {_mm512_i32gather_ps(bytes, source.panel->quarter_table, 4)};
  // Bytes below 16 (exponent fields 0 and 1) are entries as they stand; above, entry 8 + mantissa and an exponent.
  const __m512i entries = _mm512_loadu_si512(source.panel->quarter_table);
  const __m512i exponent = _mm512_max_epi32(_mm512_srli_epi32(bytes, 3), _mm512_set1_epi32(1));
  const __mmask16 above = _mm512_cmpgt_epi32_mask(bytes, _mm512_set1_epi32(15));
  const __m512i index = _mm512_mask_or_epi32(bytes, above, bytes, _mm512_set1_epi32(8));  // low four bits count
  const __m512i steps = _mm512_slli_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(1)), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_permutexvar_epi32(index, entries), steps))};
}

typedef std::int32_t FourCodes __attribute__((may_alias));

/// acc += dot products of four unsigned by four signed bytes, these from memory and the same for all lanes. As an
/// instruction, not an intrinsic: GCC 12 moves the accumulators of a large tile from register to register and to the
/// stack around the intrinsic, at half the speed.
inline void dot_product(__m512i& acc, __m512i weights, const std::int8_t* codes) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(*reinterpret_cast<const FourCodes*>(codes)));
}

/// Zeros, of which GCC 12 does not make the slow `rep stos`.
inline void clear_sums(F16* sums, int count) {
  F16 zero = splat(0.0F);
  asm("" : "+v"(zero.v));
  for (int i = 0; i < count; ++i) sums[i] = zero;
}

}  // namespace nybble::NYBBLE_ISA
