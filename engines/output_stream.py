"""The asyncio end of one request: outputs arrive from the engine and are merged for a slow reader."""

from __future__ import annotations

import asyncio

from engines.errors import EngineError
from engines.request import TokenOutput


class OutputStream:
    """A queue of one reader, used from the event loop only. Unread outputs are merged into one.

    `is_over`: the reader has taken the last output, or the error; nothing has to be aborted any more.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._pending: list[TokenOutput] = []
        self._error: EngineError | None = None
        self._ready = asyncio.Event()

    def put(self, item: TokenOutput | EngineError) -> None:
        """Add an output, or the error that ends the stream once the outputs before it are read."""
        if isinstance(item, EngineError):
            self._error = item
        else:
            self._pending.append(item)
        self._ready.set()

    async def get(self) -> TokenOutput:
        """Wait for output and take all of it as one. Raises the stream's error after its last output."""
        await self._ready.wait()
        if self._pending:
            pending, self._pending = self._pending, []
            if self._error is None:
                self._ready.clear()
            self.is_over = pending[-1].finish_reason is not None
            return pending[0] if len(pending) == 1 else merge_outputs(pending)
        assert self._error is not None
        self.is_over = True
        raise self._error


def merge_outputs(outputs: list[TokenOutput]) -> TokenOutput:
    """One output that says what `outputs`, in order, said."""
    logprobs = None
    if any(output.logprobs is not None for output in outputs):
        logprobs = tuple(entry for output in outputs for entry in output.logprobs or ())
    return TokenOutput(
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        logprobs=logprobs,
        prompt_logprobs=outputs[0].prompt_logprobs,
        finish_reason=outputs[-1].finish_reason,
        num_cached_tokens=outputs[-1].num_cached_tokens,
        timing=next((output.timing for output in reversed(outputs) if output.timing is not None), None),
    )
