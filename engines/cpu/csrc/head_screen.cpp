#include "head_screen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "isa.h"
#include "thread_pool.h"

namespace nybble {

namespace {

constexpr std::int64_t kMaxColumns = 65536;       // 255 * 128 times as many is below 2^31
constexpr std::int64_t kFetchedBytes = 32 << 10;  // of a group's weights, while another is computed
constexpr std::int64_t kGroupOutputs = kDenseGroupPanels * kPanelRows;
constexpr float kMaxOutput = 1e37F;        // beyond, the product itself might overflow
constexpr double kAboveRounding = 1.0001;  // of bounds that are kept, and multiplied, in float32

std::int64_t padded(std::int64_t num_columns) { return div_up(num_columns, kScreenBlockColumns) * kScreenBlockColumns; }

std::int64_t bytes_of_panel(std::int64_t num_columns) {
  return padded(num_columns) * kPanelRows + static_cast<std::int64_t>(sizeof(ScreenBounds));
}

/// One output's weights as int8 times a scale, and what that leaves out.
struct RoundedWeights {
  float scale, radius, reach, norm;

  /// Writes codes plus kScreenBias, four at a time every `stride` bytes.
  RoundedWeights(const float* values, std::int64_t count, std::uint8_t* codes, std::int64_t stride) {
    float largest = 0.0F;
    for (std::int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(values[k]));
    scale = largest / 127.0F;
    double squares = 0.0, left_out = 0.0, sum = 0.0;
    for (std::int64_t k = 0; k < count; ++k) {
      const float quotient = scale > 0.0F ? values[k] / scale : 0.0F;
      const auto code = static_cast<int>(std::clamp(std::nearbyint(quotient), -127.0F, 127.0F));
      codes[k / 4 * stride + k % 4] = static_cast<std::uint8_t>(code + kScreenBias);
      const double value = values[k], kept = static_cast<double>(scale) * code;
      squares += value * value;
      left_out += (value - kept) * (value - kept);
      sum += std::fabs(kept);
    }
    const double rounding = static_cast<double>(count + 256) * 0x1p-23;
    norm = static_cast<float>(std::sqrt(squares) * kAboveRounding);
    radius = static_cast<float>((std::sqrt(left_out) + rounding * std::sqrt(squares)) * kAboveRounding);
    reach = static_cast<float>(0.5 * sum * kAboveRounding);
  }
};

bool all_finite(const float* values, std::int64_t count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace

bool HeadScreen::fits(std::int64_t num_columns) {
  return kernels().screen_outputs != nullptr && num_columns <= kMaxColumns && num_columns % 2 == 0;
}

std::int64_t HeadScreen::bytes_of(std::int64_t num_rows, std::int64_t num_columns) {
  return div_up(num_rows, kPanelRows) * bytes_of_panel(num_columns);
}

HeadScreen::HeadScreen(const DenseWeight& head)
    : head_(&head),
      num_panels_(div_up(head.num_rows(), kPanelRows)),
      num_columns_(padded(head.num_columns())),
      panel_bytes_(bytes_of_panel(head.num_columns())) {
  if (!fits(head.num_columns())) throw std::invalid_argument("these kernels have no screen for such a head");
  buffer_ = AlignedBuffer(static_cast<std::size_t>(bytes_of(head.num_rows(), head.num_columns())));
  const std::int64_t num_values = kPanelRows * head.num_columns();
  std::vector<float> norms(static_cast<std::size_t>(num_panels_));
  parallel_for(num_panels_, 4.0 * static_cast<double>(num_values), [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> values(static_cast<std::size_t>(num_values));
    for (std::int64_t panel = begin; panel < end; ++panel) {
      head.decode_panel(panel, values.data());
      norms[static_cast<std::size_t>(panel)] = pack_panel(panel, values.data());
    }
  });
  largest_norm_ = *std::max_element(norms.begin(), norms.end());
}

/// The largest norm of its outputs.
float HeadScreen::pack_panel(std::int64_t panel, const float* values) {
  const std::int64_t count = head_->num_columns();
  if (!all_finite(values, kPanelRows * count)) return std::numeric_limits<float>::infinity();
  std::uint8_t* codes = buffer_.data() + panel * panel_bytes_;
  std::fill_n(codes, num_columns_ * kPanelRows, static_cast<std::uint8_t>(kScreenBias));
  auto* bounds = reinterpret_cast<ScreenBounds*>(codes + num_columns_ * kPanelRows);
  float largest = 0.0F;
  for (std::int64_t lane = 0; lane < kPanelRows; ++lane) {
    const RoundedWeights rounded(values + lane * count, count, codes + lane * 4, kPanelRows * 4);
    bounds->scale[lane] = rounded.scale;
    bounds->radius[lane] = rounded.radius;
    bounds->reach[lane] = rounded.reach;
    largest = std::max(largest, rounded.norm);
  }
  return largest;
}

UpcomingRead HeadScreen::panels() const { return {buffer_.data(), panel_bytes_, num_panels_}; }

void HeadScreen::likeliest(const float* x, std::int64_t num_rows, std::int64_t* ids, const ProductContext& context) {
  if (!fits(head_->num_columns())) throw std::invalid_argument("these kernels have no screen for such a head");
  const ScreenArgs args = bound_outputs(x, num_rows, context);
  peaks_.assign(static_cast<std::size_t>(num_rows), {0.0F, kNotFinite, true});
  find_promising(args);
  compute(x);
  find_others(args);
  compute(x);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const LogitsPeak& peak = peaks_[static_cast<std::size_t>(row)];
    ids[row] = peak.all_finite ? peak.token_id : kNotFinite;
  }
}

ScreenArgs HeadScreen::bound_outputs(const float* x, std::int64_t num_rows, const ProductContext& context) {
  float* of_rows = rows_memory_.take<float>(4 * num_rows);
  float* bounds = bounds_memory_.take<float>(2 * num_panels_ * num_rows);
  const ScreenArgs args{{buffer_.data(), panel_bytes_, head_->num_rows(), num_columns_},
                        {codes_memory_.take<std::int8_t>(2 * num_rows * num_columns_),
                         reinterpret_cast<std::int32_t*>(of_rows), of_rows + 2 * num_rows, of_rows + 3 * num_rows},
                        num_rows,
                        num_panels_,
                        kernels().reading.fetch,
                        bounds,
                        bounds + num_panels_ * num_rows};
  const KernelTable& table = kernels();
  const std::int64_t columns = head_->num_columns();
  parallel_for(num_rows, context.row_cost + static_cast<double>(columns), [&](std::int64_t begin, std::int64_t end) {
    if (context.write_rows) context.write_rows(begin, end);
    for (std::int64_t row = begin; row < end; ++row) table.prepare_screen_row(x + row * columns, columns, args, row);
  });
  fetch_while_waiting(context.next);
  parallel_for(num_panels_, static_cast<double>(columns) * static_cast<double>(1 + num_rows),
               [&](std::int64_t begin, std::int64_t end) { table.screen_outputs(args, begin, end); });
  return args;
}

/// Of each row the group whose largest output is likely the row's: the better it is, the fewer others need computing.
void HeadScreen::find_promising(const ScreenArgs& args) {
  candidates_.clear();
  for (std::int64_t row = 0; row < args.num_rows; ++row) {
    const float* floors = args.floors + row * num_panels_;
    const std::int64_t panel = std::max_element(floors, floors + num_panels_) - floors;
    candidates_.push_back({panel / kDenseGroupPanels, row});
  }
}

/// Further groups that may hold as large an output as was found: all of them where the bounds say nothing.
void HeadScreen::find_others(const ScreenArgs& args) {
  std::vector<Candidate> others;
  for (const Candidate& computed : candidates_) {
    const std::int64_t row = computed.row;
    const float norm = args.rows.norms[row], largest = peaks_[static_cast<std::size_t>(row)].logit;
    const bool known = norm < kUnknownNorm && norm * largest_norm_ < kMaxOutput;
    const float* ceilings = args.ceilings + row * num_panels_;
    for (std::int64_t panel = 0; panel < num_panels_; ++panel) {
      if (known && ceilings[panel] < largest) continue;
      const std::int64_t group = panel / kDenseGroupPanels;
      const bool is_there = group == computed.group || (panel % kDenseGroupPanels != 0 && !others.empty() &&
                                                        others.back().row == row && others.back().group == group);
      if (!is_there) others.push_back({group, row});
    }
  }
  // Those of several rows one after the other: the weights are read once.
  std::sort(others.begin(), others.end(), [](const Candidate& a, const Candidate& b) {
    return a.group < b.group || (a.group == b.group && a.row < b.row);
  });
  candidates_ = std::move(others);
}

/// So that the head's kernel does not start by waiting.
void HeadScreen::fetch_beginning(std::int64_t group) const {
  const UpcomingRead groups = head_->groups();
  const std::uint8_t* begin = groups.data + group * groups.unit_bytes;
  const std::uint8_t* end = begin + std::min(kFetchedBytes, groups.unit_bytes);
  for (const std::uint8_t* line = begin; line < end; line += kMemoryLineBytes) fetch_line_into_l2(line);
}

/// The candidates' outputs as the head's kernel computes them, and the largest of each row.
void HeadScreen::compute(const float* x) {
  const KernelTable& table = kernels();
  const std::int64_t num_outputs = head_->num_rows(), columns = head_->num_columns();
  const auto num_rows = static_cast<std::int64_t>(peaks_.size());
  float* outputs = outputs_memory_.take<float>(num_rows * num_outputs);
  found_.resize(candidates_.size());
  const auto num_candidates = static_cast<std::int64_t>(candidates_.size());
  parallel_for(num_candidates, 4.0 * static_cast<double>(columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Candidate& candidate = candidates_[static_cast<std::size_t>(i)];
      if (i + 1 < end) fetch_beginning(candidates_[static_cast<std::size_t>(i + 1)].group);
      float* out = outputs + candidate.row * num_outputs;
      table.dense_linear({head_->view(), x + candidate.row * columns, out, 1}, candidate.group, candidate.group + 1);
      const std::int64_t first = candidate.group * kGroupOutputs;
      LogitsPeak& found = found_[static_cast<std::size_t>(i)];
      found = table.logits_peak(out + first, std::min(kGroupOutputs, num_outputs - first));
      found.token_id += first;
    }
  });
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    LogitsPeak& peak = peaks_[static_cast<std::size_t>(candidates_[i].row)];
    const LogitsPeak& found = found_[i];
    const bool all_finite = peak.all_finite && found.all_finite;
    const bool before = found.logit == peak.logit && found.token_id < peak.token_id;
    if (peak.token_id == kNotFinite || found.logit > peak.logit || before) peak = found;
    peak.all_finite = all_finite;
  }
}

}  // namespace nybble
