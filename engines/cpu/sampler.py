"""Choosing the next token of a sequence from its row of logits.

Order: penalties and bias on the logits, the grammar's mask, then temperature, min-p, top-k, top-p, then one
draw. The draw of a token depends on the request's seed and the token's position alone, so that a sequence
is sampled the same alone, in a batch and after preemption.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.grammar.constraint import BoolArray, Constraint
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]
_NEVER = np.float32(-np.inf)


class SequenceSampler:
    """The sampling state of one sequence: its parameters, its seed, and the tokens seen so far.

    `stop_ids` are the ids that would end the sequence; they are withheld until `min_tokens` are out, or until
    `constraint` allows nothing else.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        stop_ids: frozenset[int],
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._seed = secrets.randbits(63) if params.seed is None else params.seed % 2**63
        self._stop_ids = np.fromiter(stop_ids, np.int64, len(stop_ids))
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        self._bias_values = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self._num_generated = 0
        self._generated_counts: NDArray[np.int32] | None = None
        self._prompt_seen: NDArray[np.bool_] | None = None
        if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0:
            self._generated_counts = np.zeros(vocab_size, np.int32)
            self._prompt_seen = np.zeros(vocab_size, np.bool_)
            self._prompt_seen[np.asarray(prompt_token_ids, np.int64)] = True

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is simply the argmax of the model's logits."""
        return (
            self._params.temperature == 0.0
            and self._bias_ids.size == 0
            and self._generated_counts is None
            and self._constraint is None
            and not self._withholds_stop()
        )

    def sample(self, logits: Float32Array) -> int:
        """The next token id for float32 [vocab_size] logits, which are left untouched.

        Raises GrammarFailed when the grammar cannot be followed any further.
        """
        if self.is_plain_greedy:
            return int(logits.argmax())
        adjusted = self._adjust(logits)
        if self._params.temperature == 0.0:
            return int(adjusted.argmax())
        return self._draw(adjusted)

    def observe(self, token_id: int) -> None:
        """Count a token as generated."""
        self._num_generated += 1
        if self._generated_counts is not None:
            self._generated_counts[token_id] += 1
        if self._constraint is not None and token_id not in self._stop_ids:
            self._constraint.advance(token_id)

    def _withholds_stop(self) -> bool:
        return self._num_generated < self._params.min_tokens and self._stop_ids.size > 0

    def _adjust(self, logits: Float32Array) -> Float32Array:
        params = self._params
        adjusted: Float32Array = logits.copy()
        counts, prompt_seen = self._generated_counts, self._prompt_seen
        if counts is not None and prompt_seen is not None:
            generated = counts > 0
            seen = prompt_seen | generated
            # Repetition penalty: CTRL, arXiv 1909.05858, section 4.1, over prompt and generated tokens.
            penalty = np.float32(params.repetition_penalty)
            adjusted[seen] = np.where(adjusted[seen] > 0, adjusted[seen] / penalty, adjusted[seen] * penalty)
            adjusted -= np.float32(params.frequency_penalty) * counts
            adjusted -= np.float32(params.presence_penalty) * generated
        adjusted[self._bias_ids] += self._bias_values
        if self._constraint is None:
            if self._withholds_stop():
                adjusted[self._stop_ids] = _NEVER
        else:
            adjusted[~self._allowed(self._constraint)] = _NEVER
        return adjusted

    def _allowed(self, constraint: Constraint) -> BoolArray:
        """The grammar's mask, without the ends withheld where it leaves anything else."""
        allowed = constraint.allowed()
        if self._withholds_stop():
            going_on: BoolArray = allowed.copy()
            going_on[self._stop_ids] = False
            if going_on.any():
                return going_on
        return allowed

    def _draw(self, logits: Float32Array) -> int:
        params = self._params
        # Subtract first: a tiny temperature must not overflow the largest logit.
        scaled = (logits - logits.max()).astype(np.float64) / params.temperature
        if params.min_p > 0.0:
            candidates = np.flatnonzero(scaled >= np.log(params.min_p))
        elif self._constraint is not None:
            candidates = np.flatnonzero(scaled > _NEVER)
        else:
            candidates = np.arange(scaled.size)
        if 0 < params.top_k < candidates.size:
            candidates = _keep_top_k(scaled, candidates, params.top_k)
        weights = np.exp(scaled[candidates])
        if params.top_p < 1.0:
            candidates, weights = _keep_top_p(candidates, weights, params.top_p)
        cumulative = np.cumsum(weights)
        target = self._uniform() * cumulative[-1]
        return int(candidates[min(np.searchsorted(cumulative, target, side="right"), candidates.size - 1)])

    def _uniform(self) -> float:
        """The draw in [0, 1) that belongs to this seed and position."""
        generator = np.random.Generator(np.random.Philox(key=self._seed, counter=self._num_generated))
        return float(generator.random())


def _keep_top_k(scaled: NDArray[np.float64], candidates: NDArray[np.int64], top_k: int) -> NDArray[np.int64]:
    """The `top_k` best candidates, ids ascending; ties at the edge go to the lower id."""
    values = scaled[candidates]
    threshold = np.partition(values, values.size - top_k)[values.size - top_k]
    above = candidates[values > threshold]
    level = candidates[values == threshold][: top_k - above.size]
    return np.sort(np.concatenate((above, level)))


def _keep_top_p(
    candidates: NDArray[np.int64], weights: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The smallest set of likeliest candidates whose share reaches `top_p` (arXiv 1904.09751)."""
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order])
    num_kept = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    kept = order[: min(num_kept, order.size)]
    return candidates[kept], weights[kept]
