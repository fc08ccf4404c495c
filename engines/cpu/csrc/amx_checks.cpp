#include "amx_checks.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "aligned_buffer.h"
#include "attention_layout.h"
#include "ops.h"
#include "weights.h"

namespace nybble {

namespace {

/// Numbers without a pattern, the same every time.
class Sequence {
 public:
  std::uint32_t next() {
    state_ = state_ * 1664525U + 1013904223U;
    return state_ >> 8;
  }

 private:
  std::uint32_t state_ = 20251U;
};

}  // namespace

bool int8_tiles_agree(const KernelTable& table) {
  constexpr std::int64_t kRows = 51, kOutputs = 40, kColumns = 288;
  Sequence sequence;
  std::vector<std::uint8_t> packed(kOutputs * kColumns / 2), scales(kOutputs * kColumns / 32);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(sequence.next());
  for (auto& byte : scales) byte = static_cast<std::uint8_t>(120 + sequence.next() % 3);
  std::vector<float> scale_table(256);
  for (int byte = 0; byte < 256; ++byte) scale_table[static_cast<std::size_t>(byte)] = std::ldexp(1.0F, byte - 127);
  const Fp4Weight weight({{packed.data(), scales.data(), scale_table.data(), kOutputs}}, kColumns, 32, false);

  std::vector<float> x(kRows * kColumns), activation_scales(kRows * kColumns / 32);
  std::vector<std::int8_t> codes(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Every third block of some rows is far smaller than its neighbours: exponents that one product cannot share.
    const bool small = i / kColumns % 4 == 1 && i % kColumns / 32 % 3 == 0;
    const float value = static_cast<float>(static_cast<std::int32_t>(sequence.next() % 2001) - 1000) * 0.01F;
    x[i] = small ? std::ldexp(value, -6) : value;
  }
  table.quantize_mxfp4({x.data(), codes.data(), activation_scales.data(), kColumns, 0.0F, false}, 0, kRows);

  std::vector<float> want(kRows * kOutputs), got(want.size());
  const auto same = [&] { return std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0; };
  fp4_linear_w4a4(*avx512_kernels(), codes.data(), activation_scales.data(), weight, kRows, want.data());
  fp4_linear_w4a4(table, codes.data(), activation_scales.data(), weight, kRows, got.data());
  if (!same()) return false;
  fp4_linear_w4a16(*avx512_kernels(), x.data(), weight, kRows, want.data());
  fp4_linear_w4a16(table, x.data(), weight, kRows, got.data());
  return same();
}

bool bfloat16_tiles_agree(const KernelTable& table) {
  // An odd number of row tiles, a lone panel, lanes that pad, half a step of columns; several ranges of columns.
  constexpr std::int64_t kRows = 41, kOutputs = 40, kColumns = 16 * 69;
  Sequence sequence;
  std::vector<std::uint8_t> packed(kOutputs * kColumns / 2), scales(kOutputs * kColumns / 16);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(sequence.next());
  for (auto& byte : scales) byte = static_cast<std::uint8_t>(sequence.next() % 127);
  std::vector<float> scale_table(256);
  for (int byte = 0; byte < 127; ++byte) {
    scale_table[static_cast<std::size_t>(byte)] = byte < 8
                                                      ? std::ldexp(static_cast<float>(byte), -9)
                                                      : std::ldexp(static_cast<float>(8 + byte % 8), byte / 8 - 10);
  }
  const Fp4Weight weight({{packed.data(), scales.data(), scale_table.data(), kOutputs}}, kColumns, 16, false);

  std::vector<float> x(kRows * kColumns), activation_scales(kRows * kColumns / 16);
  std::vector<std::int8_t> codes(x.size());
  for (float& value : x) {
    value = std::ldexp(static_cast<float>(static_cast<std::int32_t>(sequence.next() % 2001) - 1000),
                       -static_cast<int>(sequence.next() % 12));
  }
  table.quantize_nvfp4({x.data(), codes.data(), activation_scales.data(), kColumns, 1.0F, true}, 0, kRows);

  // One row by itself goes through the vector kernels.
  std::vector<float> want(kOutputs), got(kRows * kOutputs);
  const auto same = [&](std::int64_t row) {
    return std::memcmp(want.data(), got.data() + row * kOutputs, want.size() * sizeof(float)) == 0;
  };
  bool agree = true;
  fp4_linear_w4a4(table, codes.data(), activation_scales.data(), weight, kRows, got.data());
  for (std::int64_t row = 0; row < kRows; ++row) {
    fp4_linear_w4a4(table, codes.data() + row * kColumns, activation_scales.data() + row * kColumns / 16, weight, 1,
                    want.data());
    agree = agree && same(row);
  }
  fp4_linear_w4a16(table, x.data(), weight, kRows, got.data());
  for (std::int64_t row = 0; row < kRows; ++row) {
    fp4_linear_w4a16(table, x.data() + row * kColumns, weight, 1, want.data());
    agree = agree && same(row);
  }
  return agree;
}

bool attention_tiles_agree(const KernelTable& table) {
  constexpr std::int64_t kKvHeads = 2, kHeads = 6, kHeadDim = 64, kBlockSize = 16, kBlocks = 13, kRows = 37;
  constexpr std::int64_t kElements = kBlocks * kKvHeads * kBlockSize * kHeadDim;
  Sequence sequence;
  std::vector<std::uint16_t> keys(kElements), values(kElements);
  for (auto* elements : {&keys, &values}) {  // of magnitudes from 2^-6 to 4
    for (auto& element : *elements) {
      const std::uint32_t bits = sequence.next();
      element = static_cast<std::uint16_t>((bits & 0x807fU) | (121U + (bits >> 16) % 8U) << 7);
    }
  }
  std::vector<float> q(kRows * kHeads * kHeadDim);
  for (float& value : q) value = static_cast<float>(static_cast<std::int32_t>(sequence.next() % 2001) - 1000) * 0.002F;
  std::vector<std::int32_t> block_table(kBlocks);
  for (std::int32_t i = 0; i < kBlocks; ++i) block_table[static_cast<std::size_t>(i)] = (5 * i + 3) % kBlocks;

  constexpr std::int64_t kMaxQueries = kRows * kHeads / kKvHeads;
  const std::int64_t scratch_floats =
      TileOperands::floats(kMaxQueries, kHeadDim) + HeadsScratch::floats(kKvHeads, kMaxQueries, kHeadDim);
  const std::int64_t state_floats = AttentionState::floats(kMaxQueries, kHeadDim);
  const auto states_of = [&](const KernelTable& kernels, int num_rows, std::int64_t window) {
    const AttentionUnit unit{0, kBlocks * kBlockSize - num_rows, num_rows, block_table.data()};
    const std::int64_t num_heads = num_rows * kHeads / kKvHeads <= kFewQueries ? kKvHeads : 1;
    const AttentionArgs args{
        {keys.data(), values.data(), kBlocks, kKvHeads, kBlockSize, kHeadDim, ElementType::kBfloat16},
        q.data(),
        nullptr,
        kHeads,
        0.125F,
        window};
    AlignedBuffer scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
    AlignedBuffer states(static_cast<std::size_t>(kKvHeads * state_floats) * sizeof(float));
    kernels.attention(args, {&unit, 0, num_heads, 0, 1}, nullptr, reinterpret_cast<float*>(scratch.data()),
                      reinterpret_cast<float*>(states.data()), state_floats);
    return states;
  };
  const auto agree = [&](int num_rows, std::int64_t window) {
    const AlignedBuffer got = states_of(table, num_rows, window);
    const AlignedBuffer want = states_of(*amx_emulated_kernels(), num_rows, window);
    return std::memcmp(got.data(), want.data(), got.num_bytes()) == 0;
  };
  return agree(1, 0) && agree(1, 70) && agree(kRows, 0) && agree(kRows, 70);
}

}  // namespace nybble
