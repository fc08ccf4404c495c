"""Reading a JSON object from a checkpoint, with limits set before anything is parsed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from engines.errors import MalformedCheckpoint

CONFIG_LIMIT_BYTES = 16 * 1024 * 1024
_UTF8_BOM = b"\xef\xbb\xbf"


def require_regular_file(path: Path) -> int:
    """The size of `path` in bytes. Raises MalformedCheckpoint when it is absent or no regular file.

    Links are followed; a pipe or device is refused before it is opened, because opening could block.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise MalformedCheckpoint(
            f"{path}: cannot be read ({_reason(error)}); is the download complete?"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise MalformedCheckpoint(f"{path}: is not a regular file; expected a file")
    return status.st_size


def read_json_object(path: Path, limit_bytes: int = CONFIG_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in `path`. Raises MalformedCheckpoint for anything else, and above `limit_bytes`."""
    size = require_regular_file(path)
    if size > limit_bytes:
        raise MalformedCheckpoint(f"{path}: has {size} bytes; expected at most {limit_bytes}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MalformedCheckpoint(f"{path}: cannot be read ({_reason(error)})") from None
    return parse_json_object(content.removeprefix(_UTF8_BOM), path)


def parse_json_object(content: bytes, path: Path, what: str = "the file") -> dict[str, Any]:
    """Parse strict JSON: UTF-8, no duplicate names, no NaN or Infinity, an object at the top."""
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise MalformedCheckpoint(f"{path}: {what} is nested too deeply to be JSON of a checkpoint") from None
    except ValueError as error:
        raise MalformedCheckpoint(f"{path}: {what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedCheckpoint(f"{path}: {what} holds a JSON {type(value).__name__}; expected an object")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the name {name!r} occurs twice")
        unique[name] = value
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _reason(error: OSError | ValueError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
