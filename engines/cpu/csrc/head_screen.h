#pragma once
// The likeliest token without all logits: an int8 copy of the head's weights bounds every output, and only those that
// can be the largest are computed. The token is that of the whole product, whatever the bounds are worth.
//
// Output n of a row x, as the head's kernel computes it in float32, differs from scale_n * q_n * (step * a), the
// product of the copy q_n and the row's integers a, by at most
//   |w_n - scale_n q_n| |x|          what rounding the weights leaves out (Cauchy-Schwarz, Euclidean norms)
//   sum_k |scale_n q_nk| * step / 2  what rounding the activations does
//   (K + 256) 2^-23 |w_n| |x|        float32 sums, of the kernel and of this product, with room to spare

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "ops.h"
#include "scratch.h"

namespace nybble {

class HeadScreen {
 public:
  /// Whether the kernels in use have a screen, and int32 sums hold the products of so many columns.
  static bool fits(std::int64_t num_columns);
  /// What a screen of a head [num_rows, num_columns] takes, and reads.
  static std::int64_t bytes_of(std::int64_t num_rows, std::int64_t num_columns);

  /// Borrows the head. Throws std::invalid_argument for one that does not fit.
  explicit HeadScreen(const DenseWeight& head);

  /// likeliest_tokens() of dense_linear(x): x [num_rows, columns of the head]. One call at a time.
  void likeliest(const float* x, std::int64_t num_rows, std::int64_t* ids, const ProductContext& context = {});

  const DenseWeight& head() const { return *head_; }
  UpcomingRead panels() const;
  std::size_t num_bytes() const { return buffer_.num_bytes(); }

 private:
  /// Two panels, which the head's kernel computes together, of a row.
  struct Candidate {
    std::int64_t group, row;
  };
  float pack_panel(std::int64_t panel, const float* values);
  ScreenArgs bound_outputs(const float* x, std::int64_t num_rows, const ProductContext& context);
  void find_promising(const ScreenArgs& args);
  void find_others(const ScreenArgs& args);
  void compute(const float* x);
  void fetch_beginning(std::int64_t group) const;

  const DenseWeight* head_;
  std::int64_t num_panels_;
  std::int64_t num_columns_;  // padded to whole blocks
  std::int64_t panel_bytes_;
  float largest_norm_ = 0.0F;  // of an output's weights; infinite if one is not finite
  AlignedBuffer buffer_;
  Scratch codes_memory_, rows_memory_, bounds_memory_, outputs_memory_;
  std::vector<Candidate> candidates_;
  std::vector<LogitsPeak> found_;  // of the candidates
  std::vector<LogitsPeak> peaks_;  // of the rows, as far as computed
};

}  // namespace nybble
