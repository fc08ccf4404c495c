"""Where a build works until it is whole: a directory beside the destination, resumed by the same build.

Stages have fixed names, so that a plan can show the exact commands; a stage counts only once it is marked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.checkpoint.durable_writes import sync_directory
from engines.trtllm.errors import DestinationError

_KEY_FILE = "build_key"
_LOCK_FILE = "lock"
_RESULT = "result"
BUILD_LOG = "build.log"


def staging_directory(destination: Path) -> Path:
    """The place beside `destination`, hidden, of the same file system."""
    absolute = destination.absolute()
    return absolute.parent / f".{absolute.name}.building"


class BuildWorkspace:
    """One build's stages. Use `open_workspace`."""

    def __init__(self, directory: Path, destination: Path) -> None:
        self._directory = directory
        self._destination = destination

    @property
    def log(self) -> Path:
        """What the programs say, of all attempts."""
        return self._directory / BUILD_LOG

    def path(self, stage: str) -> Path:
        """Where the stage's result is or will be."""
        return self._directory / stage

    def is_done(self, stage: str) -> bool:
        """Whether an earlier attempt, or this one, has finished the stage."""
        return self._marker(stage).exists() and self.path(stage).exists()

    @contextmanager
    def run(self, stage: str) -> Iterator[Path]:
        """Do a stage: what a broken attempt left is removed first, and the stage is marked at the end."""
        self._marker(stage).unlink(missing_ok=True)
        _remove(self.path(stage))
        yield self.path(stage)
        self._marker(stage).touch()
        sync_directory(self._directory)

    @contextmanager
    def result(self) -> Iterator[Path]:
        """An empty directory that becomes the destination when the block ends well."""
        place = self.path(_RESULT)
        _remove(place)
        place.mkdir()
        yield place
        try:
            os.rename(place, self._destination)
        except OSError as error:
            raise DestinationError(
                f"{self._destination}: cannot be put in place ({error.strerror}); the result is {place}"
            ) from error
        sync_directory(self._directory.parent)

    def _marker(self, stage: str) -> Path:
        return self._directory / f"{stage}.done"


@contextmanager
def open_workspace(destination: Path, build_key: str) -> Iterator[BuildWorkspace]:
    """The workspace of one build; removed when the block ends well, kept for another attempt when not.

    What another build left there is removed. Raises DestinationError: no parent directory, not writable, or
    another process is building the same destination.
    """
    directory = staging_directory(destination)
    if not directory.parent.is_dir():
        raise DestinationError(f"{destination}: {directory.parent} is no directory; create it first")
    try:
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DestinationError(f"{directory}: cannot be made ({error.strerror})") from error
    try:
        _lock(descriptor, destination)
        _claim(directory, build_key)
        yield BuildWorkspace(directory, destination.absolute())
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, destination: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise DestinationError(
            f"{destination}: another process is building it; wait for it, or stop it and try again"
        ) from None


def _claim(directory: Path, build_key: str) -> None:
    """Keep what is there when it belongs to this build, else begin anew."""
    key_file = directory / _KEY_FILE
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if key_file.read_text(encoding="utf-8") == build_key:
            return
    for path in directory.iterdir():
        if path.name != _LOCK_FILE:
            _remove(path)
    key_file.write_text(build_key, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
