"""What is compared: one system with one precision of the model, and how to start it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.errors import EngineError


class PeerUnavailable(EngineError):
    """A system cannot take part; the message is the reason, for the report."""


@dataclass(frozen=True, slots=True)
class System:
    """`worker` is a module of `engines.bench.peers.workers`, run by `python`; `settings` are its own.

    `family` is the name that users call it by ("llama.cpp"), `name` also says the precision.
    """

    name: str
    family: str
    worker: str
    model: Path
    python: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's."""
        return self.family != "nybble"

    @property
    def model_bytes(self) -> int:
        """Of the model's files."""
        if self.model.is_file():
            return self.model.stat().st_size
        return sum(path.stat().st_size for path in self.model.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Limits:
    """What every worker gets: the same threads, on the same cores, and room for the same sequences."""

    num_threads: int
    cores: tuple[int, ...]
    max_num_seqs: int
    max_model_len: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. `num_tokens` 0 is a prefill of `num_prompt_tokens`; else each stream generates as many."""

    name: str
    num_streams: int
    num_prompt_tokens: int
    num_tokens: int
