"""The decoder: embedding, layers, final norm and head, as one pass over a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cpu import kernels
from engines.cpu.decoder_pass import DecoderPass
from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache
from engines.cpu.linear import Linear
from engines.cpu.models.compiled_pass import compile_pass, head_screen
from engines.cpu.models.layer import DecoderLayer
from engines.cpu.token_draw import likeliest_tokens
from engines.cpu.workspace import Workspace

Float32Array = NDArray[np.float32]


class Decoder:
    """A whole model. Not safe for concurrent passes: one engine thread owns it.

    Runs in C++ in one call where every layer has a counterpart there, else operation by operation; the bits
    are the same.

    `embedding` is the file's table, [vocab_size, hidden_size], bfloat16 as uint16, float16 or float32. With
    `screens_head` the likeliest tokens are found without all logits where those are not wanted, which takes
    half the head's bytes once more.
    """

    def __init__(
        self,
        embedding: NDArray[Any],
        layers: Sequence[DecoderLayer],
        final_norm: Float32Array,
        head: Linear,
        rms_norm_eps: float,
        *,
        screens_head: bool = False,
    ) -> None:
        self._embedding = embedding
        self._layers = tuple(layers)
        self._final_norm = final_norm
        self._head = head
        self._eps = rms_norm_eps
        self._workspace = Workspace()
        self._screen = head_screen(head) if screens_head else None
        self._pass = compile_pass(embedding, self._layers, final_norm, head, self._screen, rms_norm_eps)

    @property
    def vocab_size(self) -> int:
        """Number of logits per row."""
        return self._head.num_rows

    @property
    def is_compiled(self) -> bool:
        """Whether `forward` is one call into C++."""
        return self._pass is not None

    @property
    def screens_head(self) -> bool:
        """Whether `likeliest` computes less than `forward`."""
        return self._screen is not None and self._pass is not None

    def forward(self, batch: ForwardBatch, cache: KvCache) -> Float32Array:
        """Logits of `batch.logits_rows`, float32 [num_logits_rows, vocab_size]; fills `cache`."""
        return self.step(batch, cache)[0]

    def step(self, batch: ForwardBatch, cache: KvCache) -> tuple[Float32Array, NDArray[np.int64]]:
        """`forward`, and each row's likeliest token: see `token_draw.likeliest_tokens`."""
        if self._pass is None:
            logits = self.forward_stepwise(batch, cache)
            return logits, likeliest_tokens(logits)
        logits = np.empty((batch.logits_rows.size, self.vocab_size), np.float32)
        return logits, self._run(self._pass, batch, cache, logits)

    def likeliest(self, batch: ForwardBatch, cache: KvCache) -> NDArray[np.int64]:
        """What `step` says of each row's likeliest token, without its logits; only where `screens_head`."""
        assert self._pass is not None
        return self._run(self._pass, batch, cache, None)

    @staticmethod
    def _run(
        compiled: DecoderPass, batch: ForwardBatch, cache: KvCache, logits: Float32Array | None
    ) -> NDArray[np.int64]:
        likeliest = np.empty(batch.logits_rows.size, np.int64)
        compiled.run(batch, cache, logits, likeliest)
        return likeliest

    def forward_stepwise(self, batch: ForwardBatch, cache: KvCache) -> Float32Array:
        """`forward`, one kernel at a time."""
        num_rows, hidden_size = batch.token_ids.size, self._embedding.shape[1]
        scratch = self._workspace
        x = scratch.array("residual", (num_rows, hidden_size))
        kernels.embed(batch.token_ids, self._embedding, x)
        normed = scratch.array("normed", (num_rows, hidden_size))
        branch = scratch.array("branch", (num_rows, hidden_size))
        branch.fill(0.0)
        for layer in self._layers:
            kernels.add_rms_norm(branch, x, layer.input_norm, self._eps, normed)
            layer.attention(normed, batch, cache, branch, scratch)
            kernels.add_rms_norm(branch, x, layer.post_attention_norm, self._eps, normed)
            layer.feed_forward(normed, branch, scratch)
        x += branch
        return self._logits(x, batch.logits_rows)

    def _logits(self, x: Float32Array, rows: NDArray[np.int64]) -> Float32Array:
        if rows.size == 0:
            return np.empty((0, self.vocab_size), np.float32)
        scratch = self._workspace
        wanted = scratch.array("head_rows", (rows.size, x.shape[1]))
        kernels.gather_rows(x, rows, wanted)
        normed = scratch.array("head_in", (rows.size, x.shape[1]))
        kernels.rms_norm(wanted, self._final_norm, self._eps, normed)
        logits = np.empty((rows.size, self.vocab_size), np.float32)
        self._head(normed, logits, scratch)
        return logits
