"""Processor time of another process, as proc(5) tells it."""

from __future__ import annotations

import os
from pathlib import Path


def user_and_system_seconds(process_id: int) -> tuple[float, float]:
    """Of all threads of a process so far. Raises OSError when there is no such process."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


def cpu_seconds(process_id: int) -> float:
    """User and system time together."""
    return sum(user_and_system_seconds(process_id))
