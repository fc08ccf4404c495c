"""Perplexity: how well a model predicts a text, over sliding windows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.cpu.logprobs import log_sum_exp
from engines.errors import InvalidRequest
from engines.evaluate.documents import Document, check_token_ids
from engines.evaluate.logits import LogitsChunk, SequenceModel
from engines.evaluate.windows import Window, Windowing, windows

_Float = TypeVar("_Float", np.float32, np.float64)

Progress = Callable[[int], None]
"""Called with the number of positions computed since the last call."""


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """`mean_nll` in nats per scored token, over all documents together; perplexity = exp(mean_nll).

    `num_computed_tokens` counts every position that was run, overlapping ones as often as they were.
    """

    perplexity: float
    mean_nll: float
    num_scored_tokens: int
    num_computed_tokens: int
    num_documents: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Positions computed per second, by the model and the scoring together."""
        return self.num_computed_tokens / self.seconds if self.seconds > 0 else math.inf


def measure_perplexity(
    model: SequenceModel,
    documents: Sequence[Document],
    windowing: Windowing,
    progress: Progress = lambda _: None,
) -> PerplexityResult:
    """The perplexity of `model` on `documents`, each by itself.

    Raises InvalidRequest when no document has two tokens and as `SequenceModel.logits` does.
    """
    check_token_ids(documents, model.config.vocab_size)
    started = time.perf_counter()
    total, num_scored, num_computed = 0.0, 0, 0
    for document in documents:
        for window in windows(len(document.token_ids), windowing):
            tokens = document.token_ids[window.begin : window.end]
            for chunk in model.logits(tokens, first_row=first_row(window)):
                targets = chunk_targets(tokens, chunk)
                rows = chunk.rows[: targets.size]
                total -= float((pick_targets(rows, targets) - log_sum_exp(rows)).sum())
                num_scored += targets.size
            num_computed += len(tokens)
            progress(len(tokens))
    require_scored(num_scored)
    seconds = time.perf_counter() - started
    return perplexity_result(total, num_scored, num_computed, len(documents), seconds)


def perplexity_result(
    total_nll: float, num_scored: int, num_computed: int, num_documents: int, seconds: float
) -> PerplexityResult:
    """The result of sums; a perplexity beyond float64 is infinite."""
    mean = total_nll / num_scored
    perplexity = math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf
    return PerplexityResult(perplexity, mean, num_scored, num_computed, num_documents, seconds)


def num_positions(documents: Sequence[Document], windowing: Windowing) -> int:
    """How many positions measuring `documents` computes, for a progress bar."""
    return sum(
        window.end - window.begin
        for document in documents
        for window in windows(len(document.token_ids), windowing)
    )


def first_row(window: Window) -> int:
    """The row, counted from the window's begin, that predicts its first scored token."""
    return window.first_scored - 1 - window.begin


def chunk_targets(tokens: Sequence[int], chunk: LogitsChunk) -> NDArray[np.int64]:
    """The tokens that `chunk`'s rows predict, int64; one fewer than rows where the window ends."""
    return np.asarray(tokens[chunk.start + 1 : chunk.start + 1 + chunk.rows.shape[0]], np.int64)


def log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of float32 logits [num_rows, vocab_size], in float64."""
    return rows - log_sum_exp(rows)[:, None]


def pick_targets(rows: NDArray[_Float], targets: NDArray[np.int64]) -> NDArray[_Float]:
    """From each of `rows` [num_rows, vocab_size] the entry of its own target, [num_rows]."""
    picked: NDArray[_Float] = np.take_along_axis(rows, targets[:, None], axis=-1)[:, 0]
    return picked


def require_scored(num_scored: int) -> None:
    """Raise InvalidRequest when the text was too short to score anything."""
    if num_scored == 0:
        raise InvalidRequest("the text has no document of at least two tokens; give a longer one")
