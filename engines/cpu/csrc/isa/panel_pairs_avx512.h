#pragma once
// Up to 12 rows times two panels of MXFP4 weights with scales in the shared form (W4A4, AVX-512 VBMI): superblock after
// superblock in one piece of assembly. Each load of activations serves both panels, and so does what a superblock takes
// besides its products.
//
// By hand, because what compilers add takes ports from the products (Zen 5: a 64-byte store both of them for a cycle, a
// rotation or a multiplication one), and because an instruction whose operand comes late waits there for all products
// before it. So outputs' sums stay in registers as far as there are any, shifts of blocks are shifted from the same 16
// bytes and not rotated, scales, which are powers of two, are multiplied by adding their exponents, and a superblock's
// first codes are unpacked before the sums of the one before are scaled.
//
// zmm0-23: integer sums [row][panel] upwards, and downwards the outputs' sums [row][panel], the rest of which is in
// memory. 24: scales. 25, 26: four columns of each panel. 27: four codes, or a factor. 28: the table of shifted codes.
// 29: 15 in each byte. 30, 31: the shifts of each panel's block.

#include "by_block_avx512.h"
#include "shifted_codes_avx512.h"

namespace nybble::NYBBLE_ISA {

/// What the assembly reads by its offset.
struct alignas(64) PairConstants {
  ShiftedCodes shifted_codes = make_shifted_codes(kSharedBias);
  ByteLanes lanes;                      // 64
  std::uint32_t fifteens = 0x0f0f0f0f;  // 128
  std::int32_t quarter = -2 - 127;      // 132: from a scale's byte to the exponent of its quarter, without bias
};

constexpr PairConstants kPairConstants;

/// How far ahead something is fetched, and by the `num_last` superblocks before the end, for which that lies in the
/// next two panels.
struct PairFetch {
  std::int64_t within_bytes, beyond_bytes, num_last;
};

/// Superblocks of two panels, and of the rows.
struct PairWalk {
  std::int64_t num_superblocks;
  std::int64_t num_last_blocks;  // of the last superblock; the others are whole
  const std::uint8_t* codes;
  const std::uint8_t* scales;
  std::int64_t panel_bytes;  // from the first panel to the second
  const std::int8_t* row_codes;
  const std::int32_t* row_biases;
  const float* row_scales;                         // powers of two
  std::int64_t row_codes_bytes, row_values_bytes;  // from a superblock to the next
  PairFetch fetch_codes, fetch_scales;
};

// clang-format off

// OP(row, its integer sums in both panels, its outputs' sums): the numbers of registers.
#define NYBBLE_ROWS(OP)                                                                  \
  OP(0, 0, 1, 23, 22) OP(1, 2, 3, 21, 20) OP(2, 4, 5, 19, 18) OP(3, 6, 7, 17, 16)        \
  OP(4, 8, 9, 15, 14) OP(5, 10, 11, 13, 12) OP(6, 12, 13, 11, 10) OP(7, 14, 15, 9, 8)    \
  OP(8, 16, 17, 7, 6) OP(9, 18, 19, 5, 4) OP(10, 20, 21, 3, 2) OP(11, 22, 23, 1, 0)

#define NYBBLE_IF_ROW(row, code) ".if %c[rows] > " #row "\n" code ".endif\n"
#define NYBBLE_IF_IN_REGISTER(sum) ".if " #sum " >= 2*%c[rows]\n"
#define NYBBLE_SUM_IN_MEMORY(row, panel) "(" #panel "*%c[rows]+" #row ")*64(%[sums])"

#define NYBBLE_LOAD_SUM(row, panel, sum)                                                 \
  NYBBLE_IF_IN_REGISTER(sum)                                                             \
  "vmovaps " NYBBLE_SUM_IN_MEMORY(row, panel) ", %%zmm" #sum "\n"                        \
  ".endif\n"
#define NYBBLE_STORE_SUM(row, panel, sum)                                                \
  NYBBLE_IF_IN_REGISTER(sum)                                                             \
  "vmovaps %%zmm" #sum ", " NYBBLE_SUM_IN_MEMORY(row, panel) "\n"                        \
  ".endif\n"
#define NYBBLE_LOAD_SUMS(row, a, b, sum_a, sum_b)                                        \
  NYBBLE_IF_ROW(row, NYBBLE_LOAD_SUM(row, 0, sum_a) NYBBLE_LOAD_SUM(row, 1, sum_b))
#define NYBBLE_STORE_SUMS(row, a, b, sum_a, sum_b)                                       \
  NYBBLE_IF_ROW(row, NYBBLE_STORE_SUM(row, 0, sum_a) NYBBLE_STORE_SUM(row, 1, sum_b))

#define NYBBLE_START(row, a, b, sum_a, sum_b)                                            \
  NYBBLE_IF_ROW(row,                                                                     \
    "vpbroadcastd " #row "*4(%[biases],%[at]), %%zmm" #a "\n"                            \
    "vmovdqa64 %%zmm" #a ", %%zmm" #b "\n")

#define NYBBLE_MULTIPLY(row, a, b, sum_a, sum_b)                                         \
  NYBBLE_IF_ROW(row,                                                                     \
    "vpbroadcastd " #row "*128+\\column(%[x]), %%zmm27\n"                                \
    "vpdpbusd %%zmm27, %%zmm25, %%zmm" #a "\n"                                           \
    "vpdpbusd %%zmm27, %%zmm26, %%zmm" #b "\n")

// The integer sum in `a`, scaled, joins the output's.
#define NYBBLE_SCALE(row, panel, a, sum)                                                 \
  "vcvtdq2ps %%zmm" #a ", %%zmm" #a "\n"                                                 \
  "vpaddd " #row "*4(%[row_scales],%[at])%{1to16%}, %%zmm24, %%zmm27\n"                  \
  NYBBLE_IF_IN_REGISTER(sum)                                                             \
  "vfmadd231ps %%zmm" #a ", %%zmm27, %%zmm" #sum "\n"                                    \
  ".else\n"                                                                              \
  "vfmadd213ps " NYBBLE_SUM_IN_MEMORY(row, panel) ", %%zmm27, %%zmm" #a "\n"             \
  "vmovaps %%zmm" #a ", " NYBBLE_SUM_IN_MEMORY(row, panel) "\n"                          \
  ".endif\n"
#define NYBBLE_SCALE_FIRST(row, a, b, sum_a, sum_b)                                      \
  NYBBLE_IF_ROW(row, NYBBLE_SCALE(row, 0, a, sum_a))
#define NYBBLE_SCALE_SECOND(row, a, b, sum_a, sum_b)                                     \
  NYBBLE_IF_ROW(row, NYBBLE_SCALE(row, 1, b, sum_b))

// Packed codes in 25 and 26, their low halves, to shifted codes.
#define NYBBLE_LOOK_UP                                                                   \
  "vpternlogd $0xe2, %%zmm30, %%zmm29, %%zmm25\n"                                        \
  "vpternlogd $0xe2, %%zmm31, %%zmm29, %%zmm26\n"                                        \
  "vpermb %%zmm28, %%zmm25, %%zmm25\n"                                                   \
  "vpermb %%zmm28, %%zmm26, %%zmm26\n"
#define NYBBLE_LOW_CODES(place, base)                                                    \
  "vmovdqa64 " place "(" base "), %%zmm25\n"                                             \
  "vmovdqa64 " place "(" base ",%[panel]), %%zmm26\n"                                    \
  NYBBLE_LOOK_UP
#define NYBBLE_HIGH_CODES(place)                                                         \
  "vpsrlw $4, " place "(%[w]), %%zmm25\n"                                                \
  "vpsrlw $4, " place "(%[w],%[panel]), %%zmm26\n"                                       \
  NYBBLE_LOOK_UP

// The shifts of the superblock with scales at `base`, two bits of a byte for each block, moved so that a block's are
// bits 4 and 5.
#define NYBBLE_SHIFTS(base, move)                                                        \
  "vbroadcasti32x4 16(" base "), %%zmm30\n"                                              \
  "vbroadcasti32x4 16(" base ",%[panel]), %%zmm31\n"                                     \
  "vpshufb 64+%[constants], %%zmm30, %%zmm30\n"                                          \
  "vpshufb 64+%[constants], %%zmm31, %%zmm31\n"                                          \
  move
#define NYBBLE_FIRST_BLOCK "vpslld $4, %%zmm30, %%zmm30\n vpslld $4, %%zmm31, %%zmm31\n"
#define NYBBLE_SECOND_BLOCK "vpslld $2, %%zmm30, %%zmm30\n vpslld $2, %%zmm31, %%zmm31\n"
#define NYBBLE_THIRD_BLOCK ""
#define NYBBLE_FOURTH_BLOCK "vpsrld $2, %%zmm30, %%zmm30\n vpsrld $2, %%zmm31, %%zmm31\n"
// Those of the block after \block; rcx is the next superblock's scales.
#define NYBBLE_NEXT_SHIFTS                                                               \
  ".if \\block == 0\n" NYBBLE_SHIFTS("%[s]", NYBBLE_SECOND_BLOCK)                        \
  ".elseif \\block == 1\n" NYBBLE_SHIFTS("%[s]", NYBBLE_THIRD_BLOCK)                     \
  ".elseif \\block == 2\n" NYBBLE_SHIFTS("%[s]", NYBBLE_FOURTH_BLOCK)                    \
  ".else\n" NYBBLE_SHIFTS("%%rcx", NYBBLE_FIRST_BLOCK)                                   \
  ".endif\n"

#define NYBBLE_QUARTERS(scales)                                                          \
  "vpmovzxbd " scales ", %%zmm24\n"                                                      \
  "vpaddd 132+%[constants]%{1to16%}, %%zmm24, %%zmm24\n"                                 \
  "vpslld $23, %%zmm24, %%zmm24\n"

// rcx: how far ahead of a superblock something is fetched. rax: superblocks left.
#define NYBBLE_AHEAD(what)                                                               \
  "mov %[" what "_within], %%rcx\n"                                                      \
  "cmp %[" what "_last], %%rax\n"                                                        \
  "cmovle %[" what "_beyond], %%rcx\n"

// clang-format on

/// sums[panel][row] += the walk's superblocks, in their order. Rows whose exponents are not shared add nothing. The
/// walk is a copy, on the stack, where its numbers take no register for their address.
template <int Rows>
void add_pair_superblocks(const PairWalk walk, F16 (&sums)[2][Rows]) {
  const std::uint8_t* codes = walk.codes;
  const std::uint8_t* scales = walk.scales;
  const std::uint8_t* ahead;
  const std::int8_t* x = walk.row_codes;
  std::int64_t at = 0, left = walk.num_superblocks;
  // clang-format off
  asm volatile(
      "vmovdqa64 %[constants], %%zmm28\n vpbroadcastd 128+%[constants], %%zmm29\n"
      NYBBLE_ROWS(NYBBLE_LOAD_SUMS)
      NYBBLE_SHIFTS("%[s]", NYBBLE_FIRST_BLOCK)
      NYBBLE_LOW_CODES("0", "%[w]")
      "1:\n"
      "mov %[left], %%rax\n"
      NYBBLE_AHEAD("scales") "add %[s], %%rcx\n prefetcht0 (%%rcx)\n prefetcht0 (%%rcx,%[panel])\n"
      NYBBLE_AHEAD("codes") "lea (%[w],%%rcx), %[ahead]\n"
      // rdx and rcx: the next superblock, after the last one that again: nothing behind it is read.
      "lea 1024(%[w]), %%rdx\n lea 32(%[s]), %%rcx\n cmp $1, %%rax\n cmove %[w], %%rdx\n cmove %[s], %%rcx\n"
      "mov %[x_step], %%rax\n"
      NYBBLE_ROWS(NYBBLE_START)
      ".irp block, 0, 1, 2, 3\n"
      ".irp step, 0, 1, 2, 3\n"
      "prefetcht0 \\block*256+\\step*64(%[ahead])\n prefetcht0 \\block*256+\\step*64(%[ahead],%[panel])\n"
      // The next activations, two lines a row. Those of up to 8 rows stay in L1.
      ".if %c[rows] > 8\n"
      "prefetcht0 \\block*256+\\step*64(%[x],%%rax)\n prefetcht0 1024+\\block*256+\\step*64(%[x],%%rax)\n"
      ".endif\n"
      ".if \\block+\\step > 0\n" NYBBLE_LOW_CODES("\\block*256+\\step*64", "%[w]") ".endif\n"
      ".irp column, \\block*32+\\step*8\n" NYBBLE_ROWS(NYBBLE_MULTIPLY) ".endr\n"
      NYBBLE_HIGH_CODES("\\block*256+\\step*64")
      ".if \\step == 3\n" NYBBLE_NEXT_SHIFTS ".endif\n"
      ".irp column, \\block*32+\\step*8+4\n" NYBBLE_ROWS(NYBBLE_MULTIPLY) ".endr\n"
      ".endr\n"
      ".if \\block < 3\n cmpq $\\block+1, %[last_blocks]\n jne 3f\n cmp %[w], %%rdx\n je 2f\n 3:\n .endif\n"
      ".endr\n"
      "2:\n"
      NYBBLE_LOW_CODES("0", "%%rdx")
      NYBBLE_QUARTERS("(%[s])") NYBBLE_ROWS(NYBBLE_SCALE_FIRST)
      NYBBLE_QUARTERS("(%[s],%[panel])") NYBBLE_ROWS(NYBBLE_SCALE_SECOND)
      "mov %%rdx, %[w]\n mov %%rcx, %[s]\n add %%rax, %[x]\n add %[at_step], %[at]\n"
      "decq %[left]\n jnz 1b\n"
      NYBBLE_ROWS(NYBBLE_STORE_SUMS)
      : [w] "+r"(codes), [s] "+r"(scales), [x] "+r"(x), [at] "+r"(at), [left] "+m"(left), [ahead] "=&r"(ahead)
      : [panel] "r"(walk.panel_bytes), [biases] "r"(walk.row_biases), [row_scales] "r"(walk.row_scales),
        [sums] "r"(&sums), [x_step] "m"(walk.row_codes_bytes), [at_step] "m"(walk.row_values_bytes),
        [last_blocks] "m"(walk.num_last_blocks), [codes_within] "m"(walk.fetch_codes.within_bytes),
        [codes_beyond] "m"(walk.fetch_codes.beyond_bytes), [codes_last] "m"(walk.fetch_codes.num_last),
        [scales_within] "m"(walk.fetch_scales.within_bytes), [scales_beyond] "m"(walk.fetch_scales.beyond_bytes),
        [scales_last] "m"(walk.fetch_scales.num_last), [constants] "m"(kPairConstants), [rows] "i"(Rows)
      : "memory", "cc", "rax", "rcx", "rdx", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",
        "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
  // clang-format on
}

#undef NYBBLE_ROWS
#undef NYBBLE_IF_ROW
#undef NYBBLE_SUM_IN_MEMORY
#undef NYBBLE_IF_IN_REGISTER
#undef NYBBLE_LOAD_SUM
#undef NYBBLE_STORE_SUM
#undef NYBBLE_LOAD_SUMS
#undef NYBBLE_STORE_SUMS
#undef NYBBLE_START
#undef NYBBLE_MULTIPLY
#undef NYBBLE_SCALE
#undef NYBBLE_SCALE_FIRST
#undef NYBBLE_SCALE_SECOND
#undef NYBBLE_LOOK_UP
#undef NYBBLE_LOW_CODES
#undef NYBBLE_HIGH_CODES
#undef NYBBLE_SHIFTS
#undef NYBBLE_FIRST_BLOCK
#undef NYBBLE_SECOND_BLOCK
#undef NYBBLE_THIRD_BLOCK
#undef NYBBLE_FOURTH_BLOCK
#undef NYBBLE_NEXT_SHIFTS
#undef NYBBLE_QUARTERS
#undef NYBBLE_AHEAD

}  // namespace nybble::NYBBLE_ISA
