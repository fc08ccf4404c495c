"""How far a model is from a reference model on the same text: KL divergence, agreement, perplexity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidRequest
from engines.evaluate.documents import Document, check_token_ids
from engines.evaluate.logits import LogitsChunk, SequenceModel
from engines.evaluate.perplexity import (
    PerplexityResult,
    Progress,
    chunk_targets,
    first_row,
    log_softmax,
    perplexity_result,
    pick_targets,
    require_scored,
)
from engines.evaluate.windows import Windowing, windows


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the likeliest next tokens differ: the token at `position` (from 0) of the document `source`.

    `token_id` is the text's own token there, `token_id_a` and `token_id_b` are the models' choices.
    """

    source: str
    position: int
    token_id: int
    token_id_a: int
    token_id_b: int


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """B judged by A. KL(A||B) in nats per token; `agreement` is the share of equal likeliest tokens."""

    a: PerplexityResult
    b: PerplexityResult
    mean_kl: float
    p99_kl: float
    max_kl: float
    agreement: float
    max_logit_difference: float
    first_divergence: Divergence | None

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of B over that of A; above 1 B is worse."""
        return float(np.exp(self.b.mean_nll - self.a.mean_nll))


@dataclass(slots=True)
class _Totals:
    nll_a: float = 0.0
    nll_b: float = 0.0
    num_computed: int = 0
    num_agreeing: int = 0
    max_logit_difference: float = 0.0
    first_divergence: Divergence | None = None
    kl: list[NDArray[np.float64]] = field(default_factory=list)


def compare_models(
    a: SequenceModel,
    b: SequenceModel,
    documents: Sequence[Document],
    windowing: Windowing,
    progress: Progress = lambda _: None,
) -> ComparisonResult:
    """Run both models over `documents` in step and compare every scored position.

    Raises InvalidRequest when their vocabularies differ in size, and as `measure_perplexity` does.
    """
    if a.vocab_size != b.vocab_size:
        raise InvalidRequest(
            f"the models have vocabularies of {a.vocab_size} and {b.vocab_size} tokens; expected equal ones"
        )
    check_token_ids(documents, a.config.vocab_size)
    totals, started = _Totals(), time.perf_counter()
    seconds = [0.0, 0.0]
    for document in documents:
        for window in windows(len(document.token_ids), windowing):
            tokens = document.token_ids[window.begin : window.end]
            row = first_row(window)
            chunks_a, chunks_b = a.logits(tokens, row), b.logits(tokens, row)
            while True:
                before = time.perf_counter()
                chunk_a = next(chunks_a, None)
                between = time.perf_counter()
                chunk_b = next(chunks_b, None)
                seconds[0] += between - before
                seconds[1] += time.perf_counter() - between
                if chunk_a is None or chunk_b is None:
                    break
                _add_chunk(totals, document, window.begin, tokens, chunk_a, chunk_b)
            totals.num_computed += len(tokens)
            progress(len(tokens))
    num_scored = sum(part.size for part in totals.kl)
    require_scored(num_scored)
    scoring = time.perf_counter() - started - sum(seconds)
    return _result(totals, num_scored, len(documents), seconds[0] + scoring / 2, seconds[1] + scoring / 2)


def _add_chunk(
    totals: _Totals,
    document: Document,
    begin: int,
    tokens: Sequence[int],
    chunk_a: LogitsChunk,
    chunk_b: LogitsChunk,
) -> None:
    targets = chunk_targets(tokens, chunk_a)
    rows_a, rows_b = chunk_a.rows[: targets.size], chunk_b.rows[: targets.size]
    if targets.size == 0:
        return
    logprobs_a, logprobs_b = log_softmax(rows_a), log_softmax(rows_b)
    totals.nll_a -= float(pick_targets(logprobs_a, targets).sum())
    totals.nll_b -= float(pick_targets(logprobs_b, targets).sum())
    # rounding can leave a sum that is 0 in truth a hair below
    totals.kl.append(np.maximum((np.exp(logprobs_a) * (logprobs_a - logprobs_b)).sum(axis=-1), 0.0))
    best_a, best_b = rows_a.argmax(axis=-1), rows_b.argmax(axis=-1)
    totals.num_agreeing += int((best_a == best_b).sum())
    totals.max_logit_difference = max(totals.max_logit_difference, float(np.abs(rows_a - rows_b).max()))
    if totals.first_divergence is None and (best_a != best_b).any():
        row = int(np.flatnonzero(best_a != best_b)[0])
        totals.first_divergence = Divergence(
            source=document.source,
            position=begin + chunk_a.start + row + 1,
            token_id=int(targets[row]),
            token_id_a=int(best_a[row]),
            token_id_b=int(best_b[row]),
        )


def _result(
    totals: _Totals, num_scored: int, num_documents: int, seconds_a: float, seconds_b: float
) -> ComparisonResult:
    kl = np.concatenate(totals.kl)
    computed = totals.num_computed
    return ComparisonResult(
        a=perplexity_result(totals.nll_a, num_scored, computed, num_documents, seconds_a),
        b=perplexity_result(totals.nll_b, num_scored, computed, num_documents, seconds_b),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.quantile(kl, 0.99)),
        max_kl=float(kl.max()),
        agreement=totals.num_agreeing / num_scored,
        max_logit_difference=totals.max_logit_difference,
        first_divergence=totals.first_divergence,
    )
