"""One sequence's way through its grammar: a mask before each token, the token afterwards."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
from numpy.typing import NDArray

from engines.errors import GrammarFailed
from engines.grammar.compiler import CompiledGrammar

BoolArray = NDArray[np.bool_]
_MASK_SECONDS = 20.0


class Constraint:
    """Says which tokens may come next. Masks are made on `threads`, beside the model's own work.

    `end_ids` are the ids that end the sequence: those among them that spell no text are allowed exactly where
    the grammar's text is complete. `allowed` and `advance` are for one thread, in turn.
    """

    def __init__(
        self,
        grammar: CompiledGrammar,
        *,
        eos_token_id: int,
        end_ids: Collection[int],
        vocab_size: int,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._matcher = grammar.matcher
        self._eos_token_id = eos_token_id
        is_special = grammar.vocabulary.is_special_token
        self._end_ids = np.array(
            sorted(i for i in end_ids if i == eos_token_id or is_special(i)), dtype=np.int64
        )
        self._vocab_size = vocab_size
        self._threads = threads
        self._mask: Future[BoolArray] = threads.submit(self._begin)

    def allowed(self) -> BoolArray:
        """The tokens that may come next, bool [vocab_size], not to be changed; at least one is.

        Raises GrammarFailed when the grammar has become too complex, or allows no token at all.
        """
        try:
            return self._mask.result(_MASK_SECONDS)
        except FutureTimeout:
            raise GrammarFailed(
                f"the grammar did not say within {_MASK_SECONDS:g} s which token may come next; "
                "make it simpler"
            ) from None

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen, one of those allowed, and begin to work on the next mask."""
        self._mask = self._threads.submit(self._consume, token_id)

    def _begin(self) -> BoolArray:
        self._matcher = self._matcher.deep_copy()
        return self._compute()

    def _consume(self, token_id: int) -> BoolArray:
        if not self._matcher.consume_token(token_id):
            raise self._failure()
        return self._compute()

    def _compute(self) -> BoolArray:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._failure()
        mask = np.zeros(self._vocab_size, np.bool_)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocab_size]
        mask[: bits.size] = bits
        mask[self._end_ids] = mask[self._eos_token_id]
        if not mask.any():
            raise GrammarFailed("no token of this model's vocabulary can continue the grammar's text")
        return mask

    def _failure(self) -> GrammarFailed:
        reason = " ".join(self._matcher.get_error().split("\n<")[0].split())[:300]
        return GrammarFailed(f"the grammar cannot be followed any further: {reason}")
