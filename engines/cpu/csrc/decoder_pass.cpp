#include "decoder_pass.h"

#include <algorithm>
#include <cmath>

#include "index_checks.h"
#include "isa.h"
#include "thread_pool.h"

namespace nybble {

void DecoderPass::add_layer(const PassLayer& layer) {
  const std::int64_t hidden = shape_.hidden_size;
  const std::int64_t width = shape_.num_heads * shape_.head_dim;
  const std::int64_t kv_width = shape_.num_kv_heads * shape_.head_dim;
  require(layer.qkv->num_columns() == hidden, "qkv must have hidden_size columns");
  require(layer.qkv->num_rows() == width + 2 * kv_width, "qkv must have a row per dimension of q, k and v");
  require(layer.output->num_columns() == width && layer.output->num_rows() == hidden,
          "output must be [hidden_size, num_heads * head_dim]");
  require(!layer.experts.empty(), "a layer needs a feed-forward part");
  for (const FeedForwardLayer& expert : layer.experts) {
    require(expert.gate_up->num_columns() == hidden && expert.down->num_rows() == hidden &&
                expert.gate_up->num_rows() == 2 * expert.down->num_columns(),
            "gate_up must be [2 * intermediate_size, hidden_size] and down [hidden_size, intermediate_size]");
  }
  if (layer.router != nullptr) {
    const auto num_experts = static_cast<std::int64_t>(layer.experts.size());
    require(layer.router->num_columns() == hidden && layer.router->num_rows() == num_experts,
            "the router must be [num_experts, hidden_size]");
    require(1 <= layer.num_experts_per_token && layer.num_experts_per_token <= num_experts,
            "num_experts_per_token must be between 1 and the number of experts");
  } else {
    require(layer.experts.size() == 1, "several experts need a router");
  }
  layers_.push_back(layer);
}

void DecoderPass::run(const PassBatch& batch, const std::vector<KvCache>& caches, float* logits,
                      std::int64_t* likeliest) {
  require(logits != nullptr || tables_.screen != nullptr, "tokens without logits take a screen of the head");
  require(caches.size() == layers_.size(), "there must be one cache per layer");
  const std::int64_t num_rows = batch.attention.num_rows, hidden = shape_.hidden_size;
  check_indices("positions", batch.positions, num_rows, tables_.num_positions);
  check_indices("logits_rows", batch.logits_rows, batch.num_logits_rows, num_rows);
  const PassUnderWay under_way;
  residual_ = residual_memory_.take<float>(num_rows * hidden);
  normed_ = normed_memory_.take<float>(num_rows * hidden);
  branch_ = branch_memory_.take<float>(num_rows * hidden);
  embed(batch.token_ids, num_rows, tables_.embedding, tables_.embedding_type, tables_.num_tokens, hidden, residual_);
  std::fill_n(branch_, num_rows * hidden, 0.0F);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const PassLayer& layer = layers_[i];
    const UpcomingRead next = product_after(i, batch, logits == nullptr);
    attention(layer, batch, caches[i]);
    if (layer.router != nullptr) {
      experts(layer, num_rows, next);
    } else {
      feed_forward(layer.experts[0], norm_rows(layer.post_attention_norm), norm_cost(), normed_, num_rows, branch_,
                   next);
    }
  }
  if (batch.num_logits_rows > 0) choose_tokens(batch, logits, likeliest);
}

/// What is read behind a layer; behind the last one of all the next pass begins.
UpcomingRead DecoderPass::product_after(std::size_t layer, const PassBatch& batch, bool screened) const {
  if (layer + 1 < layers_.size()) return layers_[layer + 1].qkv->weights();
  if (batch.num_logits_rows == 0) return first_product();
  return screened ? tables_.screen->panels() : tables_.head->weights();
}

/// Adds the branch to the residual and writes the norm of that.
RowFunction DecoderPass::norm_rows(const float* weight) {
  const KernelTable& table = kernels();
  const RmsNormArgs args{branch_, residual_, weight, normed_, shape_.hidden_size, shape_.rms_norm_eps};
  return [&table, args](std::int64_t row) { table.rms_norm(args, row, row + 1); };
}

void DecoderPass::attention(const PassLayer& layer, const PassBatch& batch, const KvCache& cache) {
  const KernelTable& table = kernels();
  const std::int64_t num_rows = batch.attention.num_rows, head_dim = shape_.head_dim;
  const std::int64_t width = shape_.num_heads * head_dim, kv_width = shape_.num_kv_heads * head_dim;
  const std::int64_t row_width = width + 2 * kv_width;
  float* qkv = qkv_memory_.take<float>(num_rows * row_width);
  layer.qkv->run(norm_rows(layer.input_norm), norm_cost(), normed_, num_rows, qkv, linear_, layer.output->weights());

  float* q = heads_memory_.take<float>(num_rows * row_width);
  float* k = q + num_rows * width;
  float* v = k + num_rows * kv_width;
  const RopeArgs rope_q{q, batch.positions, tables_.cos, tables_.sin, shape_.num_heads, head_dim};
  const RopeArgs rope_k{k, batch.positions, tables_.cos, tables_.sin, shape_.num_kv_heads, head_dim};
  parallel_for(num_rows, static_cast<double>(row_width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* source = qkv + row * row_width;
      std::copy_n(source, width, q + row * width);
      std::copy_n(source + width, kv_width, k + row * kv_width);
      std::copy_n(source + width + kv_width, kv_width, v + row * kv_width);
      table.rope(rope_q, row, row + 1);
      table.rope(rope_k, row, row + 1);
    }
  });
  kv_write({cache, k, v, batch.slots}, num_rows);
  float* attended = attended_memory_.take<float>(num_rows * width);
  const auto scale = static_cast<float>(std::pow(static_cast<double>(head_dim), -0.5));
  paged_attention({cache, q, attended, shape_.num_heads, scale, shape_.sliding_window}, batch.attention);
  const LinearLayer* next = layer.router != nullptr ? layer.router : layer.experts[0].gate_up;
  layer.output->run([](std::int64_t) {}, 0.0, attended, num_rows, branch_, linear_, next->weights());
}

void DecoderPass::feed_forward(const FeedForwardLayer& layer, const RowFunction& fill, double fill_cost, float* x,
                               std::int64_t num_rows, float* out, const UpcomingRead& next) {
  const KernelTable& table = kernels();
  const std::int64_t intermediate = layer.down->num_columns();
  float* activated = activated_memory_.take<float>(num_rows * intermediate);
  if (layer.gate_up->gates_outputs(num_rows)) {
    layer.gate_up->run_gated(fill, fill_cost, x, num_rows, activated, linear_, layer.down->weights());
    return layer.down->run([](std::int64_t) {}, 0.0, activated, num_rows, out, linear_, next);
  }
  float* gate_up = gate_up_memory_.take<float>(num_rows * 2 * intermediate);
  layer.gate_up->run(fill, fill_cost, x, num_rows, gate_up, linear_, layer.down->weights());
  const SiluMulArgs args{gate_up, activated, intermediate};
  layer.down->run([&](std::int64_t row) { table.silu_mul(args, row, row + 1); },
                  2.0 * static_cast<double>(intermediate), activated, num_rows, out, linear_, next);
}

/// Rows grouped by expert; experts without rows do no work. Contributions in ascending order of expert, so that a
/// row's sum does not depend on the rest of the batch.
void DecoderPass::experts(const PassLayer& layer, std::int64_t num_rows, const UpcomingRead& next) {
  const std::int64_t hidden = shape_.hidden_size, k = layer.num_experts_per_token;
  const auto num_experts = static_cast<std::int64_t>(layer.experts.size());
  float* router_logits = router_memory_.take<float>(num_rows * num_experts);
  layer.router->run(norm_rows(layer.post_attention_norm), norm_cost(), normed_, num_rows, router_logits, linear_, {});
  std::int32_t* choices = choice_memory_.take<std::int32_t>(num_rows * k);
  float* weights = weight_memory_.take<float>(num_rows * k);
  route_top_k(router_logits, num_rows, num_experts, k, choices, weights);

  std::fill_n(branch_, num_rows * hidden, 0.0F);
  const auto first_expert_after = [&](std::int64_t expert) {
    auto found = static_cast<std::int32_t>(num_experts);
    for (std::int64_t i = 0; i < num_rows * k; ++i) {
      if (choices[i] > expert) found = std::min(found, choices[i]);
    }
    return found;
  };
  std::vector<std::int64_t> rows;
  std::vector<float> row_weights;
  for (std::int64_t expert = 0; expert < num_experts; ++expert) {
    rows.clear();
    row_weights.clear();
    for (std::int64_t i = 0; i < num_rows * k; ++i) {
      if (choices[i] != expert) continue;
      rows.push_back(i / k);
      row_weights.push_back(weights[i]);
    }
    if (rows.empty()) continue;
    const auto count = static_cast<std::int64_t>(rows.size());
    float* in = expert_in_memory_.take<float>(count * hidden);
    float* out = expert_out_memory_.take<float>(count * hidden);
    const auto gather = [&](std::int64_t i) {
      std::copy_n(normed_ + rows[static_cast<std::size_t>(i)] * hidden, hidden, in + i * hidden);
    };
    const std::int32_t later = first_expert_after(expert);
    feed_forward(layer.experts[static_cast<std::size_t>(expert)], gather, static_cast<double>(hidden), in, count, out,
                 later < num_experts ? layer.experts[static_cast<std::size_t>(later)].gate_up->weights() : next);
    scatter_add_rows(out, rows.data(), row_weights.data(), count, hidden, branch_, num_rows);
  }
}

/// The final norm, and the head or its screen.
void DecoderPass::choose_tokens(const PassBatch& batch, float* logits, std::int64_t* likeliest) {
  const KernelTable& table = kernels();
  const std::int64_t hidden = shape_.hidden_size;
  // The norm adds the last branch to copies of the wanted rows.
  float* in = expert_in_memory_.take<float>(batch.num_logits_rows * hidden);
  float* sum = expert_out_memory_.take<float>(batch.num_logits_rows * hidden);
  float* normed = activated_memory_.take<float>(batch.num_logits_rows * hidden);
  const RmsNormArgs args{in, sum, tables_.final_norm, normed, hidden, shape_.rms_norm_eps};
  const auto fill = [&](std::int64_t i) {
    const std::int64_t row = batch.logits_rows[i];
    std::copy_n(branch_ + row * hidden, hidden, in + i * hidden);
    std::copy_n(residual_ + row * hidden, hidden, sum + i * hidden);
    table.rms_norm(args, i, i + 1);
  };
  const double fill_cost = 4.0 * static_cast<double>(hidden);
  if (logits == nullptr) {
    const auto fill_rows = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) fill(i);
    };
    return tables_.screen->likeliest(normed, batch.num_logits_rows, likeliest, {fill_rows, fill_cost, first_product()});
  }
  tables_.head->run(fill, fill_cost, normed, batch.num_logits_rows, logits, linear_, first_product());
  likeliest_tokens(logits, batch.num_logits_rows, vocab_size(), likeliest);
}

}  // namespace nybble
