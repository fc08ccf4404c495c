// Draws of a token against what each filter leaves.

#include "kernel_tests.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "token_draw.h"

namespace nybble {

namespace {

/// Draws under every filter against one that goes through all tokens; logits with many ties, and with infinities.
void test_draws(Index num_tokens) {
  Floats logits = normals(num_tokens);
  for (float& logit : logits) logit = std::round(logit * 8.0F) / 4.0F;
  for (std::size_t i = 3; i < logits.size(); i += 5) logits[i] = -std::numeric_limits<float>::infinity();
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = *std::max_element(logits.begin(), logits.end());
  for (const float distance : {infinity, 0.5F}) {
    for (const Index top_k : {0, 1, 20}) {
      for (const double top_p : {1.0, 0.5}) {
        const Index first = draw_token(logits.data(), num_tokens, {1.0F, 1e9F, distance, top_k, top_p, 0.0});
        const Index last = draw_token(logits.data(), num_tokens, {1.0F, 1e9F, distance, top_k, top_p, 0.9999999});
        const auto may_be_drawn = [&](Index token) {
          return token >= 0 && token < num_tokens && largest - logits[static_cast<std::size_t>(token)] <= distance &&
                 (top_k != 1 || logits[static_cast<std::size_t>(token)] == largest);
        };
        check(may_be_drawn(first) && may_be_drawn(last) && first <= last, "draw_token");
      }
    }
  }
  logits[0] = std::numeric_limits<float>::quiet_NaN();  // refused above this layer; here no access may go astray
  const Index drawn = draw_token(logits.data(), num_tokens, {1.0F, 1e9F, infinity, 2, 0.5, 0.5});
  check(drawn >= 0 && drawn < num_tokens, "draw_token with NaN");
}

}  // namespace

void test_sampling() {
  for (const Index num_tokens : {1, 17, 255, 5003}) test_draws(num_tokens);
}

}  // namespace nybble
