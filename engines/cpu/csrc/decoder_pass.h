#pragma once
// All layers of a decoder in one call: between two products nothing returns to Python, and the small operations run
// on the rows that a thread still has in its cache. engines/cpu/models is what it computes, operation by operation.

#include <cstdint>
#include <vector>

#include "head_screen.h"
#include "linear_layer.h"
#include "ops.h"

namespace nybble {

struct DecoderShape {
  std::int64_t hidden_size;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  std::int64_t sliding_window;  // 0: none
  float rms_norm_eps;
};

struct FeedForwardLayer {
  const LinearLayer* gate_up;
  const LinearLayer* down;
};

/// One expert is a plain feed-forward layer; several need a router.
struct PassLayer {
  const float* input_norm;  // [hidden_size]
  const LinearLayer* qkv;
  const LinearLayer* output;
  const float* post_attention_norm;  // [hidden_size]
  const LinearLayer* router;         // null for a plain layer
  std::int64_t num_experts_per_token;
  std::vector<FeedForwardLayer> experts;
};

/// Borrowed tables of the model.
struct PassTables {
  const void* embedding;  // [num_tokens, hidden_size]
  ElementType embedding_type;
  std::int64_t num_tokens;
  const float* cos;  // [num_positions, head_dim/2]
  const float* sin;
  std::int64_t num_positions;
  const float* final_norm;  // [hidden_size]
  const LinearLayer* head;
  HeadScreen* screen;  // of the head, or null
};

struct PassBatch {
  const std::int32_t* token_ids;  // [attention.num_rows]
  const std::int64_t* positions;
  const std::int64_t* slots;
  AttentionBatch attention;
  const std::int64_t* logits_rows;
  std::int64_t num_logits_rows;
};

class DecoderPass {
 public:
  DecoderPass(const DecoderShape& shape, const PassTables& tables) : shape_(shape), tables_(tables) {}

  /// Throws std::invalid_argument for layers whose sizes do not fit together.
  void add_layer(const PassLayer& layer);
  std::int64_t num_layers() const { return static_cast<std::int64_t>(layers_.size()); }
  const DecoderShape& shape() const { return shape_; }
  std::int64_t vocab_size() const { return tables_.head->num_rows(); }

  /// `caches` has one entry per layer; logits [num_logits_rows, vocab_size], or null to leave them out, which takes a
  /// screen; `likeliest` [num_logits_rows] becomes likeliest_tokens() of them. Throws std::invalid_argument for an
  /// index outside its table. One call at a time.
  void run(const PassBatch& batch, const std::vector<KvCache>& caches, float* logits, std::int64_t* likeliest);

 private:
  UpcomingRead first_product() const { return layers_.empty() ? UpcomingRead{} : layers_[0].qkv->weights(); }
  UpcomingRead product_after(std::size_t layer, const PassBatch& batch, bool screened) const;
  void attention(const PassLayer& layer, const PassBatch& batch, const KvCache& cache);
  /// `next` as in LinearLayer::run.
  void feed_forward(const FeedForwardLayer& layer, const RowFunction& fill, double fill_cost, float* x,
                    std::int64_t num_rows, float* out, const UpcomingRead& next);
  void experts(const PassLayer& layer, std::int64_t num_rows, const UpcomingRead& next);
  void choose_tokens(const PassBatch& batch, float* logits, std::int64_t* likeliest);
  RowFunction norm_rows(const float* weight);
  double norm_cost() const { return 2.0 * static_cast<double>(shape_.hidden_size); }

  DecoderShape shape_;
  PassTables tables_;
  std::vector<PassLayer> layers_;
  Scratch residual_memory_, normed_memory_, branch_memory_, qkv_memory_, heads_memory_, attended_memory_;
  Scratch gate_up_memory_, activated_memory_, router_memory_, choice_memory_, weight_memory_, expert_in_memory_,
      expert_out_memory_;
  LinearScratch linear_;
  float* residual_ = nullptr;  // [num_rows, hidden_size]
  float* normed_ = nullptr;
  float* branch_ = nullptr;  // what the last half layer adds to the residual
};

}  // namespace nybble
