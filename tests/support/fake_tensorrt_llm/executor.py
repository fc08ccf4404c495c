"""The executor: continuous batching over a model that is a hash. One asyncio task, one step at a time."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.guided_decoding import Guide
from tests.support.fake_tensorrt_llm.releases import Release
from tests.support.fake_tensorrt_llm.results import (
    CppExecutorError,
    Logprob,
    RequestError,
    RequestOutput,
    Response,
)
from tests.support.fake_tensorrt_llm.sampling_params import is_greedy
from tests.support.fake_tensorrt_llm.torch_module import Tensor

_CONTEXT = 8  # tokens the next one depends on


@dataclass
class Sequence:
    """One request with the executor."""

    result: RequestOutput
    params: Any
    prompt: list[int]
    is_cached: bool
    generated: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    guide: Guide | None = None


class Executor:
    """Runs at most `max_batch_size` sequences, whose blocks are reserved for their whole length."""

    def __init__(self, arguments: Any, vocab_size: int, release: Release, behaviour: Behaviour) -> None:
        kv_cache = arguments.kv_cache_config
        self.tokens_per_block = getattr(kv_cache, "tokens_per_block", 32)
        self.num_blocks = (kv_cache.max_tokens or 32_768) // self.tokens_per_block
        self.stats: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._arguments = arguments
        self._vocab_size = vocab_size
        self._release = release
        self._behaviour = behaviour
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._stored: set[tuple[int, ...]] = set()
        self.vocabulary: LLTokenizer | None = None  # for guided decoding
        self._task: asyncio.Task[None] | None = None
        self._num_steps = 0

    def submit(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    def stop(self) -> None:
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _work(self) -> None:
        while self._waiting or self._active:
            await asyncio.sleep(0)
            while self._behaviour.is_stuck:  # noqa: ASYNC110 - a test turns the switch, no event does
                await asyncio.sleep(0.005)
            limit = self._behaviour.crash_after_tokens
            if limit is not None and self._behaviour.num_tokens >= limit:
                for sequence in (*self._active, *self._waiting):
                    sequence.result.push(
                        CppExecutorError("rank 1 has crashed: CUDA error: an illegal access")
                    )
                self._active.clear()
                self._waiting.clear()
                return
            self._step()

    def _step(self) -> None:
        self._num_steps += 1
        self._admit()
        for sequence in list(self._active):
            self._advance(sequence)
        if getattr(self._arguments, "enable_iter_perf_stats", True):  # the TensorRT backend always gives them
            used = sum(self._num_blocks(sequence) for sequence in self._active)
            self.stats.put_nowait(
                {
                    "iter": self._num_steps,
                    "numActiveRequests": len(self._active),
                    "numQueuedRequests": len(self._waiting),
                    "kvCacheStats": {
                        "usedNumBlocks": used,
                        "maxNumBlocks": self.num_blocks,
                        "freeNumBlocks": self.num_blocks - used,
                        "tokensPerBlock": self.tokens_per_block,
                    },
                    "inflightBatchingStats": {},
                }
            )

    def _admit(self) -> None:
        for sequence in [waiting for waiting in self._waiting if waiting.result.is_cancelled]:
            self._waiting.remove(sequence)
            self._finish(sequence, Response([], [], finish_reason="cancelled"))
        while self._waiting and len(self._active) < self._arguments.max_batch_size:
            used = sum(self._num_blocks(sequence) for sequence in self._active)
            if used + self._num_blocks(self._waiting[0]) > self.num_blocks:
                return
            sequence = self._waiting.popleft()
            sequence.num_cached_tokens = self._reuse(sequence)
            if sequence.params.guided_decoding is not None:
                assert self.vocabulary is not None
                guide = Guide(sequence.params.guided_decoding, self.vocabulary, self._vocab_size)
                sequence.guide = guide
            self._active.append(sequence)

    def _num_blocks(self, sequence: Sequence) -> int:
        return -(-(len(sequence.prompt) + sequence.params.max_tokens) // self.tokens_per_block)

    def _reuse(self, sequence: Sequence) -> int:
        """Tokens of the prompt's beginning that are stored; then the prompt is stored as well."""
        if not (self._arguments.kv_cache_config.enable_block_reuse and sequence.is_cached):
            return 0
        size, prompt = self.tokens_per_block, sequence.prompt
        ends = range(size, len(prompt), size)  # the last token is always computed
        prefixes = [tuple(prompt[:end]) for end in ends]
        num_found = 0
        while num_found < len(prefixes) and prefixes[num_found] in self._stored:
            num_found += 1
        self._stored.update(prefixes)
        return num_found * size

    def _advance(self, sequence: Sequence) -> None:
        params, generated = sequence.params, sequence.generated
        if sequence.result.is_cancelled:
            self._finish(sequence, Response([], [], finish_reason="cancelled"))
            return
        if self._behaviour.failing_token in sequence.prompt:
            self._active.remove(sequence)
            sequence.result.push(RequestError("the request has failed on rank 0"))
            return
        context = sequence.prompt + generated
        logits = self._logits(context)
        token_id = self._choose(logits, sequence)
        is_first = not generated
        generated.append(token_id)
        if sequence.guide is not None:
            sequence.guide.take(token_id)
        self._behaviour.num_tokens += 1
        reason, stop_reason = self._reason(sequence, token_id)
        response = Response(
            token_ids=[token_id],
            logprobs=self._logprobs(logits, token_id, params.logprobs, streaming=sequence.result._streaming),
            prompt_logprobs=self._prompt_logprobs(sequence) if is_first else None,
            context_logits=self._context_logits(sequence) if is_first else None,
            finish_reason=reason,
            stop_reason=stop_reason,
            cached_tokens=sequence.num_cached_tokens,
        )
        if reason is None:
            sequence.result.push(response)
        else:
            self._finish(sequence, response)

    def _finish(self, sequence: Sequence, response: Response) -> None:
        if sequence in self._active:
            self._active.remove(sequence)
        sequence.result.push(response)

    def _reason(self, sequence: Sequence, token_id: int) -> tuple[str | None, int | None]:
        params = sequence.params
        if token_id == params.end_id and not params.ignore_eos:
            return "stop", None
        if token_id in (params.stop_token_ids or ()):
            return "stop", token_id
        if len(sequence.generated) == params.max_tokens:
            return "length", None
        return None, None

    def _logits(self, context: list[int]) -> NDArray[np.float64]:
        seed = zlib.crc32(np.array(context[-_CONTEXT:], np.int32).tobytes())
        if self._behaviour.has_wrong_kernels:
            seed ^= 1
        return 3.0 * np.random.Generator(np.random.PCG64(seed)).standard_normal(self._vocab_size)

    def _choose(self, logits: NDArray[np.float64], sequence: Sequence) -> int:
        params = sequence.params
        scores = logits.copy()
        if params.embedding_bias is not None:
            scores += params.embedding_bias.array
        for token_id in set(sequence.generated):
            count = sequence.generated.count(token_id)
            scores[token_id] -= (params.presence_penalty or 0.0) + count * (params.frequency_penalty or 0.0)
        if params.min_tokens and len(sequence.generated) < params.min_tokens and params.end_id >= 0:
            scores[params.end_id] = -np.inf
        if sequence.guide is not None:
            scores[~sequence.guide.mask()] = -np.inf
        if is_greedy(params):
            return int(scores.argmax())
        order = np.argsort(-scores / max(params.temperature or 1.0, 1e-6))[: params.top_k or None]
        weights = np.exp((scores[order] - scores[order[0]]) / max(params.temperature or 1.0, 1e-6))
        kept = np.cumsum(weights) - weights < (1.0 if params.top_p is None else params.top_p) * weights.sum()
        kept &= weights >= (params.min_p or 0.0) * weights[0]
        weights = np.where(kept, weights, 0.0)
        random = np.random.Generator(np.random.PCG64([params.seed or 0, len(sequence.generated)]))
        return int(random.choice(order, p=weights / weights.sum()))

    def _logprobs(
        self, logits: NDArray[np.float64], token_id: int, num_top: int | None, *, streaming: bool
    ) -> list[dict[int, Logprob]]:
        if num_top is None or (streaming and not self._release.is_since_1_2):
            return []
        logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        ranks = np.empty(len(logits), int)
        ranks[np.argsort(-logits)] = np.arange(1, len(logits) + 1)
        top = [int(best) for best in np.argsort(-logits)[:num_top]] if self._release.is_since_1_2 else []
        return [
            {key: Logprob(float(logprobs[key]), int(ranks[key])) for key in dict.fromkeys((*top, token_id))}
        ]

    def _context_logits(self, sequence: Sequence) -> Tensor | None:
        """A row for each prompt token that was computed, padded; none for what was reused."""
        if not sequence.params.return_context_logits:
            return None
        ends = range(sequence.num_cached_tokens + 1, len(sequence.prompt) + 1)
        rows = [self._logits(sequence.prompt[:end]) for end in ends]
        return Tensor(np.pad(np.array(rows, np.float32), ((0, 0), (0, 8)), constant_values=99.0))

    def _prompt_logprobs(self, sequence: Sequence) -> list[dict[int, Logprob]] | None:
        """For all but the first prompt token, and for the first generated one; none for what was reused."""
        num_top = sequence.params.prompt_logprobs
        if num_top is None:
            return None
        tokens = sequence.prompt + sequence.generated
        first = max(1, sequence.num_cached_tokens)
        return [
            self._logprobs(self._logits(tokens[:end]), tokens[end], num_top, streaming=False)[0]
            for end in range(first, len(tokens))
        ]
