#pragma once

namespace nybble {

/// Whether a small mixture model gives the same logits in one prefill, cut in three, and beside another sequence.
bool decoder_pass_is_consistent();

}  // namespace nybble
