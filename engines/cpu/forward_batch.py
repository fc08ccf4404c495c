"""What one forward pass works on: the rows of all scheduled sequences, laid out for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Rows of a step, sequence after sequence.

    `token_ids` int32 [num_rows], `positions` int64 [num_rows], `slots` int64 [num_rows] (where each row's
    keys and values go), `block_tables` int32 [num_seqs, max_blocks], `query_starts` int32 [num_seqs + 1],
    `context_lens` int32 [num_seqs] (KV length including this step's rows), `logits_rows` int64
    [num_logits_rows] (the rows whose logits are wanted).
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    block_tables: NDArray[np.int32]
    query_starts: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    logits_rows: NDArray[np.int64]
