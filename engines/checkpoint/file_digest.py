"""The digest by which files are told apart: of sources, shards and built engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

_READ_BYTES = 1 << 22


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal. OSError as the file system does."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
