"""What a run of the `nybble` command in this process left behind; the fixture `run` makes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """Exit status, and what was written."""

    status: int
    out: str
    err: str
