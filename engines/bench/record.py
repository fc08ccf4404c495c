"""What a record of measurements says besides its figures: how, when and on what it was run.

A figure without its command, commit and machine cannot be repeated. `BenchmarkRecord` is made when a
benchmark begins, so that it also knows how busy others kept the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from engines.cpu import kernels
from engines.errors import EngineError
from engines.host_memory import read_meminfo
from engines.processor import processor
from engines.trtllm.machine import installed_version

_SOURCE_TREE = Path(__file__).parents[2]
# A record written by an earlier benchmark of the same series does not make the code another one.
_SOURCES = ("engines", "service", "benchmarks", "CMakeLists.txt", "pyproject.toml", ":!benchmarks/results")
_PACKAGES = ("nybble", "numpy")
_GIT_SECONDS = 10.0
_LINE_LENGTH = 120


class BenchmarkRecord:
    """Begin it before measuring, and ask for the `document` when all figures are there."""

    def __init__(self, program: str, arguments: Sequence[str]) -> None:
        """`program` as one calls it, "python -m benchmarks.soak.run"; `arguments` are the words after it."""
        self._command = command_line(program, arguments)
        self._began = datetime.now(timezone.utc)
        self._seconds = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def document(self, figures: Mapping[str, Any], packages: Sequence[str] = ()) -> dict[str, Any]:
        """The record: command, commit, date, machine, versions, how busy the machine was; then `figures`.

        `packages`: distributions whose version matters besides Python, NumPy and Nybble. Raises ValueError
        when a figure has the name of one of the record's own fields.
        """
        seconds = time.perf_counter() - self._seconds
        head: dict[str, Any] = {
            "command": self._command,
            "commit": commit(),
            "date": self._began.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "cores_used_by_others": self._cores_used_by_others(seconds),
            "machine": machine_facts(),
            "versions": versions(packages),
        }
        if clash := head.keys() & figures.keys():
            raise ValueError(f"figures named as the record's own fields: {', '.join(sorted(clash))}")
        return head | dict(figures)

    def _cores_used_by_others(self, seconds: float) -> float | None:
        """Cores that other programs, and other guests of the host, kept busy on average; None where not told.

        Children count as ours once they have ended and been waited for.
        """
        busy = _busy_seconds()
        if busy is None or self._busy is None or seconds <= 0:
            return None
        return round(max(0.0, busy - self._busy - (_own_seconds() - self._own)) / seconds, 2)


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON in one go: a reader, or a run that is broken off, never leaves half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(document_text(document) + "\n", encoding="utf-8")
    partial.replace(path)


def document_text(value: Any, indent: int = 0) -> str:
    """JSON in which whatever fits into a line has one line: rows of figures stay rows."""
    text = json.dumps(value)
    margin = " " * indent
    if indent and indent + len(text) < _LINE_LENGTH:
        return text
    if isinstance(value, Mapping):
        fields = [f"{json.dumps(key)}: {document_text(entry, indent + 2)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(f"{margin}  {field}" for field in fields) + f"\n{margin}}}"
    if isinstance(value, list | tuple):
        entries = [document_text(entry, indent + 2) for entry in value]
        return "[\n" + ",\n".join(f"{margin}  {entry}" for entry in entries) + f"\n{margin}]"
    return text


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command as one types it; of a path that is this machine's own only the last name is kept."""
    return " ".join([program, *(shlex.quote(_without_folders(word)) for word in arguments)])


def commit() -> str | None:
    """The source tree's commit, with "-dirty" when its code differs; None for an installed package."""
    if not (_SOURCE_TREE / ".git").exists():
        return None
    found = _git("rev-parse", "--short=12", "HEAD")
    if found is None or found.returncode != 0:
        return None
    changes = _git("diff", "--quiet", "HEAD", "--", *_SOURCES)
    is_dirty = changes is None or changes.returncode != 0
    return found.stdout.strip() + ("-dirty" if is_dirty else "")


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, the instruction set of our kernels and what they say of AMX."""
    name, features = processor()
    try:
        memory = read_meminfo().get("MemTotal")
    except OSError:
        memory = None
    try:
        isa: str | None = kernels.isa_name()
        amx: str | None = kernels.amx_status()
    except EngineError:
        isa = amx = None
    return {
        "processor": name,
        "features": list(features),
        "num_cores": os.cpu_count(),
        "memory_bytes": memory,
        "isa": isa,
        "amx": amx,
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str | None]:
    """Python's version and those of our packages and of `packages`; None for one that is not installed."""
    return {"python": platform.python_version()} | {
        name: installed_version(name) for name in (*_PACKAGES, *packages)
    }


def parse_busy_seconds(text: str, ticks_per_second: int) -> float | None:
    """Seconds that all cores together were not idle, from /proc/stat; None when it does not say.

    Time of guests is contained in user's; stolen time is the host's other guests'.
    """
    found = re.match(r"cpu +(\d+) (\d+) (\d+) \d+ \d+ (\d+) (\d+) (\d+)", text)
    return None if found is None else sum(map(int, found.groups())) / ticks_per_second


def _busy_seconds() -> float | None:
    try:
        text = Path("/proc/stat").read_text(encoding="ascii")
    except OSError:
        return None
    return parse_busy_seconds(text, os.sysconf("SC_CLK_TCK"))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _without_folders(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = PurePath(value)
    return f"{option}{equals}{path.name}" if path.is_absolute() or ".." in path.parts else word


def _git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["git", "-C", str(_SOURCE_TREE), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
