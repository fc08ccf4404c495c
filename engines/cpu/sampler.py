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

from engines.cpu.penalties import TokenPenalties
from engines.cpu.token_draw import Draw, logits_peak, philox_uniform
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
        self.draw = Draw.of(params, vocab_size) if params.temperature > 0.0 else None
        """What to draw by; None takes the likeliest token."""
        wants_penalties = TokenPenalties.are_wanted(params)
        self._penalties = TokenPenalties(params, prompt_token_ids) if wants_penalties else None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is simply the argmax of the model's logits."""
        return self._params.temperature == 0.0 and self._leaves_logits_alone()

    def sample(self, logits: Float32Array) -> int:
        """The next token id for float32 [vocab_size] logits, which are left untouched.

        Raises GrammarFailed when the grammar cannot be followed any further.
        """
        adjusted = self.adjusted(logits)
        if self.draw is None:
            return logits_peak(adjusted).token_id
        return self.draw.token(adjusted, self.uniform())

    def adjusted(self, logits: Float32Array) -> Float32Array:
        """The logits to choose by: after penalties, bias and grammar. A copy unless nothing changes.

        Raises GrammarFailed when the grammar cannot be followed any further.
        """
        return logits if self._leaves_logits_alone() else self._adjust(logits)

    def observe(self, token_id: int) -> None:
        """Count a token as generated."""
        self._num_generated += 1
        if self._penalties is not None:
            self._penalties.observe(token_id)
        if self._constraint is not None and token_id not in self._stop_ids:
            self._constraint.advance(token_id)

    def _leaves_logits_alone(self) -> bool:
        return (
            self._penalties is None
            and self._bias_ids.size == 0
            and self._constraint is None
            and not self._withholds_stop()
        )

    def _withholds_stop(self) -> bool:
        return self._num_generated < self._params.min_tokens and self._stop_ids.size > 0

    def _adjust(self, logits: Float32Array) -> Float32Array:
        adjusted: Float32Array = logits.copy()
        if self._penalties is not None:
            self._penalties.apply(adjusted)
        adjusted[self._bias_ids] += self._bias_values
        if self._constraint is None:
            if self._withholds_stop():
                adjusted[self._stop_ids] = _NEVER
        else:
            np.copyto(adjusted, _NEVER, where=~self._allowed(self._constraint))
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

    def uniform(self) -> float:
        """The draw in [0, 1) that belongs to this seed and position."""
        return philox_uniform(self._seed, self._num_generated)
