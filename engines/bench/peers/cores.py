"""Which cores a comparison runs on: one hardware thread of each physical core, and the same for everybody."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from engines.errors import InvalidRequest

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores(num_cores: int) -> tuple[int, ...]:
    """The first `num_cores` that this process may use, siblings left out. Raises InvalidRequest."""
    allowed = sorted(os.sched_getaffinity(0))
    found = first_of_siblings(allowed, {core: _siblings(core) for core in allowed})
    if len(found) < num_cores:
        raise InvalidRequest(
            f"{num_cores} threads are to be compared, but this process may use {len(found)} physical cores; "
            "ask for fewer with --num-threads"
        )
    return found[:num_cores]


def first_of_siblings(allowed: Iterable[int], siblings: dict[int, frozenset[int]]) -> tuple[int, ...]:
    """Of each set of siblings the first that is allowed."""
    found: list[int] = []
    for core in allowed:
        if siblings[core].isdisjoint(found):
            found.append(core)
    return tuple(found)


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's notation, "0-2,8"."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def _siblings(core: int) -> frozenset[int]:
    try:
        return parse_cpu_list((_TOPOLOGY / f"cpu{core}/topology/thread_siblings_list").read_text())
    except (OSError, ValueError):
        return frozenset({core})
