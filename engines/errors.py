"""Everything that can go wrong in an engine or a checkpoint.

EngineError
├── InvalidRequest            the caller's fault; nothing was started
│   ├── PromptTooLong
│   └── UnsupportedParameter
├── Overloaded                try again later
│   ├── NoFreeBlocks
│   └── QueueFull
├── GenerationFailed          this sequence, not the engine: the others go on
│   └── GrammarFailed
├── CheckpointError           the files on disk
│   ├── MalformedCheckpoint
│   └── UnsupportedCheckpoint
└── EngineUnavailable         the engine, not the request
    ├── UnknownEngine
    ├── MissingExtra
    ├── StartFailed
    └── EngineDead

A message says what was wrong, what was got, what was expected and what to do about it.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors that cross the seam."""


class InvalidRequest(EngineError):
    """The request can never succeed as it stands. `param` names the offending field when there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt (with the tokens asked for) does not fit the context, or could never fit the KV cache."""


class UnsupportedParameter(InvalidRequest):
    """This engine cannot honour a parameter of the request."""


class Overloaded(EngineError):
    """The engine has no room now. `retry_after_seconds` is its guess of when it will."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoFreeBlocks(Overloaded):
    """The KV cache cannot hold one more block and nothing can be preempted."""


class QueueFull(Overloaded):
    """The waiting queue has reached its bound."""


class GenerationFailed(EngineError):
    """The model computed something unusable for this sequence (NaN logits, say)."""


class GrammarFailed(GenerationFailed):
    """The grammar turned out too complex to follow, or asks for what the vocabulary cannot spell."""


class CheckpointError(EngineError):
    """The checkpoint on disk cannot be used."""


class MalformedCheckpoint(CheckpointError):
    """A file is missing, truncated, inconsistent or hostile."""


class UnsupportedCheckpoint(CheckpointError):
    """The files are sound but hold an architecture or format that no engine here reads."""


class EngineUnavailable(EngineError):
    """The engine cannot serve at all."""


class UnknownEngine(EngineUnavailable):
    """No engine of that name is registered."""


class MissingExtra(EngineUnavailable):
    """The engine needs an optional package that is not installed."""


class StartFailed(EngineUnavailable):
    """`Engine.start` failed for a reason other than the checkpoint."""


class EngineDead(EngineUnavailable):
    """The engine stopped working after it had started; it will not recover by itself."""
