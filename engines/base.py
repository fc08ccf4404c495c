"""The interface every engine implements, and the plain data that goes in and out of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from engines.histogram import Histogram
from engines.request import GenerationRequest, GrammarKind, TokenOutput


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a user can set about an engine; each engine reads the fields that concern it.

    `activations`: "checkpoint" quantises activations as the checkpoint declares (W4A4); "bf16" does not.
    `numerics`: "fast" may use bfloat16 outside the FP4 operands; "reference" keeps float32 everywhere.
    `kv_cache_dtype`: "auto", "bfloat16" or "fp8"; "auto" is what the engine has by default.
    `kv_cache_memory_bytes` None lets the engine choose. `num_threads` 0 means all physical cores.
    `speculation` "auto" lets an engine guess tokens ahead where that pays, "off" forbids it; the output is
    the same. A step that prefills beside decoding sequences takes at most about `max_step_stretch` times as
    long as one that only decodes; 0 sets no such bound. `tensor_parallel_size` is the number of GPUs each
    layer is split over, `pipeline_parallel_size` the number of groups of layers, and `gpus_per_node` the GPUs
    of each machine of several (None: those of this one).
    `head_screen` lets the CPU engine keep an int8 copy of an unquantized head, half as large as the bfloat16
    one, to find the likeliest token faster; the output is the same.
    `structured_output` False: no grammars; TensorRT-LLM then loads no tokenizer.
    An engine that has made no progress on running requests for `stall_timeout_seconds` (and the time their
    prompts may take) is given up.
    `echo_faults` is for drills with the echo engine, see `engines.echo_faults`.
    """

    checkpoint: Path | None = None
    activations: str = "checkpoint"
    numerics: str = "fast"
    max_model_len: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    prefix_caching: bool = True
    num_threads: int = 0
    speculation: str = "auto"
    structured_output: bool = True
    max_step_stretch: float = 2.4
    head_screen: bool = True
    check_integrity: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpus_per_node: int | None = None
    stall_timeout_seconds: float = 120.0
    echo_faults: str = ""

    @property
    def may_screen_head(self) -> bool:
        """Whether `head_screen` applies: reference numerics compute all there is."""
        return self.head_screen and self.numerics == "fast"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a started engine that the service needs; optional abilities are data, not methods.

    `max_model_len` counts prompt and generated tokens together. `max_num_logprobs` is the largest
    `num_logprobs` and `num_prompt_logprobs` accepted. `grammar_kinds` are the kinds of
    `SamplingParams.grammar` accepted: none where the engine cannot restrict its output.
    """

    engine: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_logprobs: int = 20
    supports_prompt_logprobs: bool = True
    grammar_kinds: frozenset[GrammarKind] = frozenset()
    details: tuple[tuple[str, str], ...] = ()


class StepKind(str, Enum):
    """What a step of the engine computed."""

    PREFILL = "prefill"  # prompt tokens only
    DECODE = "decode"  # one new token for each sequence only
    MIXED = "mixed"  # both


# Buckets of step times: a small model's decode on many cores up to a long prefill on one.
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Gauges first, then totals since start. Cheap to take and safe from any thread.

    A grammar found in the engine's cache is no compile; one that was refused or timed out is.
    `step_seconds` holds the kinds of step the engine can tell apart, empty when it has no step times.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_used: int = 0
    num_blocks_total: int = 0
    num_preemptions_total: int = 0
    num_prompt_tokens_total: int = 0
    num_cached_prompt_tokens_total: int = 0
    num_generated_tokens_total: int = 0
    num_steps_total: int = 0
    num_draft_tokens_total: int = 0
    num_accepted_draft_tokens_total: int = 0
    num_grammar_compiles_total: int = 0
    grammar_compile_seconds_total: float = 0.0
    step_seconds: Mapping[StepKind, Histogram] = field(default_factory=dict)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks held by live sequences, 0 to 1."""
        return self.num_blocks_used / self.num_blocks_total if self.num_blocks_total else 0.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far `Engine.start` has come.

    `phase` says in a few words what is being done, for people ("repacking weights"); `phase_seconds` is how
    long that has taken. `fraction`, 0 to 1, never goes back within a phase; None when the engine cannot tell.
    """

    phase: str
    phase_seconds: float
    fraction: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None

    @property
    def eta_seconds(self) -> float | None:
        """What is left of the phase at its speed so far; None as long as nothing is known."""
        if self.fraction is None or self.fraction <= 0.0:
            return None
        return self.phase_seconds * (1.0 - min(self.fraction, 1.0)) / self.fraction


class Engine(ABC):
    """A runtime for one model. Lifecycle: construct (cheap), `start`, any number of `generate`, `close`.

    All methods are called from one asyncio event loop. Requests are independent: an error or an abort
    of one leaves the others untouched, and under greedy sampling a sequence's tokens do not depend on
    what else is in the batch.
    """

    @abstractmethod
    async def start(self) -> None:
        """Load the model and get ready to serve; returns once `generate` may be called.

        Raises CheckpointError, MissingExtra or StartFailed. `close` may be called after a failed start.
        """

    def load_progress(self) -> LoadProgress | None:
        """How far `start` has come; None before it, after it, and with an engine that cannot tell.

        Cheap, and safe from any thread: health checks ask for it.
        """
        return None

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Facts about the engine; valid once `start` has returned."""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """Stream the request's tokens; the last output, and only that one, has a `finish_reason`.

        Closing the generator early (`aclose`, or cancelling the task that iterates it) aborts the
        request and frees what it holds: there is no other duty on the caller. An output may carry
        several tokens when the caller is slower than the engine; none is ever dropped.

        Raises, at the first iteration, InvalidRequest (and subclasses), Overloaded or EngineUnavailable;
        later, EngineDead.
        """

    @abstractmethod
    async def abort(self, request_id: str) -> None:
        """End a request from outside: its stream yields a last output with FinishReason.ABORT.

        An unknown or finished id is ignored. Returns once the request holds no slot and no KV block.
        """

    @abstractmethod
    def stats(self) -> EngineStats:
        """A snapshot of gauges and totals."""

    async def died(self) -> str:
        """Wait until the engine stops working by itself, requests or none, and say why.

        For ever with an engine that cannot notice it without a request.
        """
        await asyncio.Event().wait()
        raise AssertionError("unreachable: nobody sets the event")

    @abstractmethod
    async def close(self) -> None:
        """Stop and free everything; requests still running end with EngineDead. Safe to call twice."""
