"""Asking the check process about a grammar, and surviving its death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engines
from engines.grammar.limits import MAX_COMPILE_CPU_SECONDS
from engines.grammar.vocabulary import UnusableVocabulary, VocabularySource

# Both are for a machine that is very busy; CPU time is bounded by the process itself.
_START_SECONDS = 120.0
_CHECK_SECONDS = 12.0 * MAX_COMPILE_CPU_SECONDS

# What Python needs to start. The server's keys and settings are none of that process's business.
_KEPT_VARIABLES = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


class GrammarChecker:
    """Owns one check process, started when it is first needed and again after it has died.

    `check` is for one thread at a time; `close` may be called from any, and ends a check in progress.
    """

    def __init__(self, source: VocabularySource) -> None:
        self._source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def check(self, grammar: str) -> str | None:
        """What is wrong with a grammar in llguidance's form; None when it can be compiled and used.

        Raises UnusableVocabulary, and OSError when no process can be started.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            process.stdin.flush()
            answer = _read_line(process, _CHECK_SECONDS)
        except (BrokenPipeError, ValueError):  # it has died; it was closed from another thread
            answer = None
        if answer is None:
            return _cause_of_death(self._end(process))
        error: str | None = answer["error"]
        return error

    def close(self) -> None:
        """End the process. A check in progress says that the process has died."""
        self._closed = True
        if self._process is not None:
            self._end(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process.poll() is None:
            return process
        if process is not None:
            self._end(process)
        if self._closed:
            raise OSError("the engine has been closed")
        process = self._process = _start(self._source)
        if self._closed:  # meanwhile
            self._end(process)
            raise OSError("the engine has been closed")
        answer = _read_line(process, _START_SECONDS)
        if answer is None:
            raise OSError(f"the process that checks grammars {_ending(self._end(process))} at its start")
        if "unusable" in answer:
            self._end(process)
            raise UnusableVocabulary(answer["unusable"])
        return process

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> int:
        """Kill the process, if it lives, and return how it ended."""
        process.kill()
        returncode = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what was still to be written
                    pipe.close()
        return returncode


def _start(source: VocabularySource) -> subprocess.Popen[bytes]:
    root = str(Path(engines.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join((root, inherited))
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "engines.grammar.check_process",
            str(source.directory.resolve()),
            str(source.vocab_size),
            str(source.eos_token_id),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={
            **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            "PYTHONPATH": path,
        },
    )


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
    """The process's next answer; None when it ends or takes too long."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n"):
        remaining = deadline - time.monotonic()
        try:
            readable = select.select([process.stdout], [], [], max(remaining, 0.0))[0]
            piece = os.read(process.stdout.fileno(), 65536) if readable else b""
        except (OSError, ValueError):
            return None  # closed from another thread
        if not piece:
            return None
        received += piece
    answer: dict[str, Any] = json.loads(received)
    return answer


def _cause_of_death(returncode: int) -> str:
    if returncode == -signal.SIGXCPU:
        return f"it takes more than {MAX_COMPILE_CPU_SECONDS} s to compile; make it simpler or smaller"
    return "it is too large or too deeply nested to be compiled"


def _ending(returncode: int) -> str:
    return f"was ended by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
