// The pass over a whole model, for sanitizers; the Python tests hold it against the kernels one by one.

#include "decoder_pass_tests.h"

#include <cmath>
#include <deque>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "decoder_pass.h"

namespace nybble {

namespace {

constexpr std::int64_t kHidden = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kIntermediate = 96, kVocab = 50;
constexpr std::int64_t kLayers = 2, kExperts = 3, kBlockSize = 4, kBlocks = 16, kPositions = 24;

class SmallModel {
 public:
  SmallModel() : cos_(kPositions * kHeadDim / 2), sin_(cos_.size()), norm_(kHidden, 1.0F) {
    for (std::size_t i = 0; i < cos_.size(); ++i) {
      cos_[i] = std::cos(static_cast<float>(i));
      sin_[i] = std::sin(static_cast<float>(i));
    }
    embedding_ = normals(kVocab * kHidden);
    for (int byte = 0; byte < 256; ++byte) table_.push_back(std::ldexp(1.0F, byte - 127));
    pass_.emplace(DecoderShape{kHidden, kHeads, kKvHeads, kHeadDim, 0, 1e-5F},
                  PassTables{embedding_.data(), ElementType::kFloat32, kVocab, cos_.data(), sin_.data(), kPositions,
                             norm_.data(), dense(kVocab), nullptr});
    for (std::int64_t i = 0; i < kLayers; ++i) pass_->add_layer(layer());
    for (std::int64_t i = 0; i < 2 * kLayers; ++i) {
      caches_.emplace_back(kBlocks * kKvHeads * kBlockSize * kHeadDim, std::uint16_t{0});
    }
  }

  /// Logits of all rows of sequences that start at position `start`, sequence s in blocks from `first_block[s]` on.
  std::vector<float> run(const std::vector<std::int32_t>& ids, std::int64_t start, std::vector<std::int32_t> starts,
                         const std::vector<std::int32_t>& first_block) {
    const auto num_rows = static_cast<std::int64_t>(ids.size());
    const auto num_sequences = static_cast<std::int64_t>(first_block.size());
    constexpr std::int64_t kTable = kPositions / kBlockSize;
    std::vector<std::int32_t> tables, contexts;
    std::vector<std::int64_t> positions, slots, wanted;
    for (std::size_t s = 0; s < first_block.size(); ++s) {
      for (std::int64_t b = 0; b < kTable; ++b) tables.push_back(first_block[s] + static_cast<std::int32_t>(b));
      contexts.push_back(static_cast<std::int32_t>(start) + starts[s + 1] - starts[s]);
      for (std::int64_t position = start; position < contexts.back(); ++position) {
        wanted.push_back(static_cast<std::int64_t>(positions.size()));
        positions.push_back(position);
        slots.push_back(first_block[s] * kBlockSize + position);
      }
    }
    std::vector<KvCache> caches;
    for (std::size_t i = 0; i < kLayers; ++i) {
      caches.push_back({caches_[2 * i].data(), caches_[2 * i + 1].data(), kBlocks, kKvHeads, kBlockSize, kHeadDim,
                        ElementType::kBfloat16});
    }
    std::vector<float> logits(static_cast<std::size_t>(num_rows * kVocab));
    std::vector<std::int64_t> likeliest(ids.size());
    pass_->run({ids.data(),
                positions.data(),
                slots.data(),
                {num_rows, num_sequences, kTable, tables.data(), starts.data(), contexts.data()},
                wanted.data(),
                num_rows},
               caches, logits.data(), likeliest.data());
    for (std::size_t row = 0; row < ids.size(); ++row) {
      const auto first = logits.begin() + static_cast<std::ptrdiff_t>(row) * kVocab;
      if (std::max_element(first, first + kVocab) - first != likeliest[row]) return {};
    }
    return logits;
  }

 private:
  std::vector<float> normals(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }

  const LinearLayer* dense(std::int64_t num_rows) {
    const std::vector<float> values = normals(num_rows * kHidden);
    dense_.emplace_back(values.data(), num_rows, kHidden, ElementType::kFloat32);
    layers_.emplace_back().add_dense(&dense_.back(), nullptr);
    return &layers_.back();
  }

  const LinearLayer* fp4(std::int64_t num_rows, std::int64_t num_columns) {
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(num_rows * num_columns / 2));
    std::vector<std::uint8_t> scales(packed.size() / 16);
    for (auto& byte : packed) byte = static_cast<std::uint8_t>(random_());
    for (auto& byte : scales) byte = static_cast<std::uint8_t>(120 + random_() % 6);
    fp4_.emplace_back(std::vector<Fp4Shard>{{packed.data(), scales.data(), table_.data(), num_rows}}, num_columns, 32,
                      false);
    layers_.emplace_back().add_fp4(&fp4_.back(), {InputFormat::kMxfp4, 0.0F, false}, nullptr);
    return &layers_.back();
  }

  PassLayer layer() {
    PassLayer layer{norm_.data(),
                    fp4((kHeads + 2 * kKvHeads) * kHeadDim, kHidden),
                    fp4(kHidden, kHeads * kHeadDim),
                    norm_.data(),
                    dense(kExperts),
                    2,
                    {}};
    for (std::int64_t i = 0; i < kExperts; ++i) {
      layer.experts.push_back({fp4(2 * kIntermediate, kHidden), fp4(kHidden, kIntermediate)});
    }
    return layer;
  }

  std::mt19937 random_{11};
  std::vector<float> cos_, sin_, norm_, embedding_, table_;
  std::deque<DenseWeight> dense_;  // deques: layers keep pointers into them
  std::deque<Fp4Weight> fp4_;
  std::deque<LinearLayer> layers_;
  std::deque<std::vector<std::uint16_t>> caches_;
  std::optional<DecoderPass> pass_;
};

}  // namespace

bool decoder_pass_is_consistent() {
  SmallModel model;
  const std::vector<std::int32_t> ids = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7};
  const std::vector<float> whole = model.run(ids, 0, {0, 10}, {0});
  std::vector<float> parts;
  for (const auto& [begin, end] : {std::pair{0, 4}, {4, 5}, {5, 10}}) {
    const std::vector<float> part = model.run({ids.begin() + begin, ids.begin() + end}, begin, {0, end - begin}, {8});
    parts.insert(parts.end(), part.begin(), part.end());
  }
  std::vector<std::int32_t> both = {1, 2, 3};
  both.insert(both.end(), ids.begin(), ids.end());
  const std::vector<float> pair = model.run(both, 0, {0, 3, 13}, {9, 0});
  return parts == whole && std::vector<float>(pair.begin() + 3 * kVocab, pair.end()) == whole;
}

}  // namespace nybble
