"""The target directory: written beside its place, checked, renamed; absent or whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.checkpoint.durable_writes import sync_directory
from engines.convert.errors import DestinationError

# Files beside the weights that stay true: tokenizer, generation settings, licence. Not the model card, which
# describes the source, nor the recipe that made it.
_CARRIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "LICENSE*",
    "NOTICE*",
)
_ROOM_FOR_FILES_BYTES = 64 * 1024 * 1024  # beside the tensors


def check_destination(destination: Path) -> None:
    """Refuse a destination that exists or whose parent is no directory. Raises DestinationError."""
    if destination.exists() or destination.is_symlink():
        raise DestinationError(
            f"{destination}: exists already; choose another destination or remove it first"
        )
    parent = destination.absolute().parent
    if not parent.is_dir():
        raise DestinationError(f"{destination}: {parent} is no directory; create it first")


def check_space(destination: Path, needed_bytes: int) -> None:
    """Refuse when the file system says that the target will not fit. Raises DestinationError."""
    free_bytes = shutil.disk_usage(destination.absolute().parent).free
    needed_bytes += _ROOM_FOR_FILES_BYTES
    if free_bytes < needed_bytes:
        raise DestinationError(
            f"{destination}: needs {needed_bytes:,} bytes and its file system has {free_bytes:,} free; "
            "make room or choose another place"
        )


@contextmanager
def written_aside(destination: Path) -> Iterator[Path]:
    """A directory beside `destination` that takes its name when the block ends well, and else disappears.

    Raises DestinationError for what the file system refuses, also inside the block.
    """
    check_destination(destination)
    aside: Path | None = None
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.absolute().parent))
        aside.chmod(0o755)
        yield aside
        os.rename(aside, destination)
        sync_directory(destination.absolute().parent)
    except OSError as error:
        raise _as_destination_error(destination, error) from error
    finally:
        if aside is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(aside)


def carry_files(source: Path, target: Path) -> None:
    """Copy the files that stay true of the converted model. OSError as the file system does."""
    for pattern in _CARRIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def write_text(path: Path, content: str) -> None:
    """Write and sync a small file. OSError as the file system does."""
    with path.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _as_destination_error(destination: Path, error: OSError) -> DestinationError:
    advice = {
        errno.ENOSPC: "make room or choose another place",
        errno.EDQUOT: "make room or choose another place",
        errno.EROFS: "choose a place that can be written",
        errno.EACCES: "choose a place that can be written",
        errno.EPERM: "choose a place that can be written",
        errno.ENOTEMPTY: "something else was put there meanwhile; choose another destination",
        errno.EEXIST: "something else was put there meanwhile; choose another destination",
    }.get(error.errno or 0, "see the reason above")
    reason = error.strerror or str(error)
    if isinstance(error.filename, str) and error.filename:
        reason += f": {error.filename}"
    return DestinationError(f"{destination}: cannot be written ({reason}); nothing was left there: {advice}")
