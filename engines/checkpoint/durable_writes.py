"""Writes that are whole or raise, and renames that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data`, bytes, from byte `position` on. OSError as the file system does."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
