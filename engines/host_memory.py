"""The memory of the machine, as its kernel tells it. Standard library only."""

from __future__ import annotations

import contextlib
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
_OWN_STATUS = Path("/proc/self/status")
_OWN_REFERENCES = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5), clear_refs
_WHEN_UNTOLD_BYTES = 4 * 2**30


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name from /proc/meminfo; lines without a size in kB are left out."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields = value.split()
        if len(fields) == 2 and fields[1] == "kB" and fields[0].isdecimal():
            sizes[name] = int(fields[0]) * 1024
    return sizes


def read_meminfo(path: Path = MEMINFO) -> dict[str, int]:
    """`parse_meminfo` of the running kernel. Raises OSError where there is no such file."""
    return parse_meminfo(path.read_text(encoding="utf-8"))


def available_memory_bytes() -> int:
    """Memory that can be had without swapping (MemAvailable), or 4 GiB where the kernel does not say."""
    try:
        return read_meminfo().get("MemAvailable", _WHEN_UNTOLD_BYTES)
    except OSError:
        return _WHEN_UNTOLD_BYTES


def peak_resident_bytes() -> int | None:
    """The most memory this process has held since its start or `reset_peak_resident`; None where untold."""
    try:
        return parse_meminfo(_OWN_STATUS.read_text(encoding="utf-8")).get("VmHWM")
    except OSError:
        return None


def reset_peak_resident() -> None:
    """Let `peak_resident_bytes` count from now on, where the kernel can."""
    with contextlib.suppress(OSError):
        _OWN_REFERENCES.write_text(_RESET_PEAK, encoding="ascii")
