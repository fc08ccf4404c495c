"""Grammars on their way from a request to something that can be matched: checked, compiled, kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from engines.errors import EngineUnavailable, InvalidRequest, Overloaded, UnsupportedParameter
from engines.grammar.checker import GrammarChecker
from engines.grammar.limits import parser_limits
from engines.grammar.notation import invalid_grammar, library_grammar
from engines.grammar.release import shortcoming
from engines.grammar.vocabulary import UnusableVocabulary, VocabularySource
from engines.grammar.wide_stack_threads import wide_stack_threads
from engines.request import Grammar

_logger = logging.getLogger(__name__)
_MAX_KEPT = 64
_MAX_WAITING = 64
_RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar at its beginning. `matcher` is never advanced, only copied."""

    matcher: LLMatcher
    vocabulary: LLTokenizer


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a grammar cannot be used; kept like a compiled one, so that a retry costs nothing."""

    error_class: type[InvalidRequest]
    message: str


_Result = CompiledGrammar | _Refusal | None


class GrammarCompiler:
    """Compiles one grammar at a time on a thread of its own, each after a check in a process apart.

    Results, refusals too, are kept by the grammar's content. Used from one event loop. With `only_checks`
    nothing is compiled here: for a runtime that compiles for itself, what `check` lets through.
    """

    def __init__(self, source: VocabularySource, *, only_checks: bool = False) -> None:
        if warning := shortcoming():
            _logger.warning(warning)
        self._source = source
        self._only_checks = only_checks
        self._checker = GrammarChecker(source)
        self._vocabulary: LLTokenizer | None = None
        self._thread = wide_stack_threads(1, "nybble-grammar")
        self._kept: OrderedDict[str, _Result] = OrderedDict()
        self._pending: dict[str, asyncio.Task[_Result]] = {}
        self._closed = False
        self.num_compiles_total = 0
        self.compile_seconds_total = 0.0

    async def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled grammar, from the cache if it was compiled before.

        Raises InvalidRequest (param "grammar") for a grammar that is malformed or too costly, Overloaded
        when too many wait, UnsupportedParameter when the checkpoint's tokenizer has no usable vocabulary,
        EngineUnavailable when no process can be started.
        """
        assert not self._only_checks
        compiled = await self._get(grammar)
        assert compiled is not None
        return compiled

    async def check(self, grammar: Grammar) -> bool:
        """True; raises as `compile` does."""
        await self._get(grammar)
        return True

    def close(self) -> None:
        """End the thread and the process. What is being compiled ends with EngineUnavailable."""
        self._closed = True
        self._checker.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _get(self, grammar: Grammar) -> CompiledGrammar | None:
        text = library_grammar(grammar)
        if text in self._kept:
            self._kept.move_to_end(text)
            result = self._kept[text]
        else:
            result = await asyncio.shield(self._pending.get(text) or self._begin(text))
        if isinstance(result, _Refusal):
            raise result.error_class(result.message, param="grammar")
        return result

    def _begin(self, text: str) -> asyncio.Task[_Result]:
        if len(self._pending) >= _MAX_WAITING:
            raise Overloaded(
                f"{len(self._pending)} grammars are waiting to be compiled; try again later",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        task = asyncio.create_task(self._finish(text))
        task.add_done_callback(_consume_error)
        self._pending[text] = task
        return task

    async def _finish(self, text: str) -> _Result:
        began = time.perf_counter()
        try:
            if self._closed:
                raise EngineUnavailable("the engine has been closed")
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, text)
        finally:
            del self._pending[text]
            self.num_compiles_total += 1
            self.compile_seconds_total += time.perf_counter() - began
        self._kept[text] = result
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return result

    def _compile(self, text: str) -> _Result:
        try:
            error = self._checker.check(text)
            if self._closed:
                raise EngineUnavailable("the engine has been closed")
            if error is not None:
                return _Refusal(InvalidRequest, str(invalid_grammar(error)))
            if self._only_checks:
                return None
            if self._vocabulary is None:
                self._vocabulary = self._source.load()
        except UnusableVocabulary as error:
            return _Refusal(
                UnsupportedParameter,
                f"the output cannot be held to a grammar with this checkpoint's tokenizer: {error}",
            )
        except OSError as error:
            _logger.error("a grammar could not be checked: %s", error)
            raise EngineUnavailable(f"grammars cannot be checked at the moment: {error}") from error
        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # every copy starts with the lexer states of the first step
        if matcher.is_error():
            return _Refusal(InvalidRequest, str(invalid_grammar(matcher.get_error()[:500])))
        return CompiledGrammar(matcher, self._vocabulary)


def _consume_error(task: asyncio.Task[_Result]) -> None:
    """Those who waited have got it; they may all have gone."""
    if not task.cancelled():
        task.exception()
