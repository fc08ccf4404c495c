"""The memory of the machine, as its kernel tells it. Standard library only."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
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
