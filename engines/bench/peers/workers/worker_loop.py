"""A worker's side of the talk: load once, then answer each line of JSON with the rate that it asks for.

Runs under the system's own Python, in which nothing of Nybble's dependencies need be installed.

    options   {"model": ..., "num_threads": ..., "cores": [...], "max_num_seqs": ..., "max_model_len": ...,
               "vocab_size": ..., "settings": {...}}
    out       {"loaded": {"seconds": ..., "versions": {...}}}, {"missing": reason} or {"failed": reason}
    in        {"num_prompt_tokens": ..., "num_tokens": ..., "num_streams": ...}; num_tokens 0 is a prefill
    out       {"tokens_per_second": ...} or {"failed": reason}
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TextIO

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told. `cores` are those it may run on; `settings` are its system's own."""

    model: str
    num_threads: int
    cores: list[int]
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    settings: dict[str, str]


class LoadedSystem(Protocol):
    """A model that is ready to run. Prompts hold random token ids, a new one each time."""

    def versions(self) -> dict[str, str]:
        """Of the packages that do the work."""

    def prefill(self, num_tokens: int) -> float:
        """Prompt tokens a second, one sequence, up to its first logits."""

    def decode(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """Generated tokens a second of all streams together, while all of them decode."""


def serve(load: Callable[[WorkerOptions], LoadedSystem], argument: str) -> None:
    """Load the system by the JSON of `argument` and answer until the standard input ends."""
    answers = _own_the_standard_output()
    _die_with_the_parent()
    options = WorkerOptions(**json.loads(argument))
    os.sched_setaffinity(0, options.cores)
    started = time.perf_counter()
    try:
        system = load(options)
    except ImportError as error:
        _answer(answers, {"missing": str(error)})
        return
    except Exception as error:
        _answer(answers, {"failed": _described(error)})
        raise
    loaded = {"seconds": time.perf_counter() - started, "versions": system.versions()}
    _answer(answers, {"loaded": loaded})
    for line in sys.stdin:
        _answer(answers, _measured(system, json.loads(line)))


def random_prompts(num_prompts: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """Token ids that no cache has seen; the first few are special in most vocabularies and left out."""
    return [[random.randrange(3, vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def installed_versions(*packages: str) -> dict[str, str]:
    """Of those distributions that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _measured(system: LoadedSystem, run: dict[str, int]) -> dict[str, Any]:
    try:
        if run["num_tokens"] == 0:
            return {"tokens_per_second": system.prefill(run["num_prompt_tokens"])}
        rate = system.decode(run["num_streams"], run["num_prompt_tokens"], run["num_tokens"])
        return {"tokens_per_second": rate}
    except Exception as error:
        return {"failed": _described(error)}


def _own_the_standard_output() -> TextIO:
    """Libraries print; what they print goes to the log, and only answers to the pipe."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(pipe, "w", encoding="utf-8")


def _die_with_the_parent() -> None:
    """A stopped process would never see that its input has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(pipe: TextIO, answer: dict[str, Any]) -> None:
    pipe.write(json.dumps(answer) + "\n")
    pipe.flush()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
