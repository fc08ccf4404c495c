"""What can go wrong around TensorRT-LLM, besides the checkpoint and the request.

BuildError                an engine directory cannot be made; nothing is at the destination then
├── BuildRefused          the plan cannot work: sizes, memory, versions, formats
├── BuildToolFailed       trtllm-build ended badly; the message says what is known about it
└── DestinationError      the destination exists, is in use, or cannot be written
StaleEngine               an engine directory exists and must not be loaded here (a StartFailed)
"""

from __future__ import annotations

from engines.errors import EngineError, StartFailed


class BuildError(EngineError):
    """Base of the build stage's own errors."""


class BuildRefused(BuildError):
    """The plan cannot work."""


class BuildToolFailed(BuildError):
    """trtllm-build ended with a failure. `exit_code` is its own, or minus the signal that killed it."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DestinationError(BuildError):
    """The engine directory cannot be put where it was asked for."""


class StaleEngine(StartFailed):
    """The engine directory was built for another machine or release, or its files have changed."""
