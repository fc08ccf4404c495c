"""Grammars in the CPU engine: from a request to the constraint its sampler asks."""

from __future__ import annotations

from pathlib import Path

from engines.base import EngineInfo
from engines.errors import EngineUnavailable
from engines.grammar.compiler import GrammarCompiler
from engines.grammar.constraint import Constraint
from engines.grammar.vocabulary import VocabularySource
from engines.grammar.wide_stack_threads import wide_stack_threads
from engines.request import GenerationRequest

_NUM_MASK_THREADS = 2


class Constraints:
    """The compiler and the threads that make masks."""

    def __init__(self, directory: Path, info: EngineInfo) -> None:
        self._info = info
        self._eos_token_id = min(info.eos_token_ids)
        self._compiler = GrammarCompiler(VocabularySource(directory, info.vocab_size, self._eos_token_id))
        self._threads = wide_stack_threads(_NUM_MASK_THREADS, "nybble-mask")
        self._closed = False

    @property
    def num_compiles_total(self) -> int:
        """Grammars that were not found in the cache."""
        return self._compiler.num_compiles_total

    @property
    def compile_seconds_total(self) -> float:
        """What they took, with their time in the queue."""
        return self._compiler.compile_seconds_total

    async def begin(self, request: GenerationRequest) -> Constraint:
        """The constraint of a new sequence; its first mask is being made. Raises as `GrammarCompiler`."""
        grammar = request.sampling.grammar
        assert grammar is not None
        compiled = await self._compiler.compile(grammar)
        if self._closed:
            raise EngineUnavailable("the engine has been closed")
        return Constraint(
            compiled,
            eos_token_id=self._eos_token_id,
            end_ids=self._info.eos_token_ids | request.sampling.stop_token_ids,
            vocab_size=self._info.vocab_size,
            threads=self._threads,
        )

    def close(self) -> None:
        """End the threads and the check process."""
        self._closed = True
        self._compiler.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
