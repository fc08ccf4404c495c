"""Where an unfinished checkpoint grows, beside its destination, and the journal that lets a run continue.

    .NAME.nybble-partial/
        lock             held by the run that is writing
        journal.jsonl    line 1: what is being made from what; then one line per finished stage
        hidden-*         the calibration tokens after the last finished layer
        output/          becomes the destination by one rename at the end

A line is appended after everything it speaks of is on the disk, so whatever a kill leaves behind is either
told by the journal or done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from engines.checkpoint.durable_writes import sync_directory
from engines.quantize.errors import DestinationError, SourceChanged

_VERSION = 1


def aside_path(destination: Path) -> Path:
    """The folder a run for `destination` works in."""
    return destination.parent / f".{destination.name}.nybble-partial"


class RunDirectory:
    """The work folder of one run, locked. Close it in any case; `publish` ends the run."""

    def __init__(self, destination: Path, identity: dict[str, Any]) -> None:
        """Make the folder, or open that of an interrupted run with the same `identity` (JSON values).

        Raises DestinationError when the destination exists, cannot be written, is being written, or an
        unfinished run wanted something else; SourceChanged when that read other source files.
        """
        self.destination = destination
        self.path = aside_path(destination)
        self.output = self.path / "output"
        self._journal = self.path / "journal.jsonl"
        if destination.exists() or destination.is_symlink():
            raise DestinationError(
                f"{destination}: exists already; choose another destination or remove it first"
            )
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise destination_error(destination, error) from None
        try:
            self._take_lock()
            self.finished = self._open_journal(identity)
        except OSError as error:
            self.close()
            raise destination_error(destination, error) from None
        except BaseException:
            self.close()
            raise

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier run left finished stages."""
        return bool(self.finished)

    def record(self, entry: dict[str, Any]) -> None:
        """Add the line of a finished stage; returns once it is on the disk."""
        self._append(entry)
        self.finished.append(entry)

    def publish(self) -> None:
        """The output becomes the destination, by one rename; the folder goes."""
        for directory in (self.output, self.path):
            sync_directory(directory)
        self.output.rename(self.destination)
        sync_directory(self.destination.parent)
        shutil.rmtree(self.path, ignore_errors=True)

    def discard_if_empty(self) -> None:
        """Remove the folder when the run failed before any stage was finished: nothing worth resuming."""
        if not self.finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Release the lock; more than once does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DestinationError(
                f"{self.destination}: another run is writing it; wait for that one to end"
            ) from None

    def _open_journal(self, identity: dict[str, Any]) -> list[dict[str, Any]]:
        head = {"version": _VERSION, **identity}
        lines = _read_lines(self._journal)
        if not lines:
            shutil.rmtree(self.output)
            self.output.mkdir()
            self._journal.unlink(missing_ok=True)
            self._append(head)
            sync_directory(self.path)
            return []
        self._require_same(lines[0], head)
        return lines[1:]

    def _require_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if not different:
            return
        begun = f"{self.path}: holds an unfinished run for this destination"
        if different == ["source"]:
            files = before["source"] | now["source"]
            changed = [name for name in files if before["source"].get(name) != now["source"].get(name)]
            raise SourceChanged(
                f"{begun}, but the source has changed since it began ({', '.join(sorted(changed))}); "
                "restore the source, or remove that folder to start anew"
            )
        details = "; ".join(
            f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
            for key in different
            if key != "source"
        )
        raise DestinationError(
            f"{begun} with other options ({details:.400}); "
            "repeat the earlier command to finish it, or remove that folder to start anew"
        )

    def _append(self, entry: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry, sort_keys=True) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def destination_error(destination: Path, error: OSError) -> DestinationError:
    """What a failed write means for the user."""
    reason = error.strerror or str(error)
    where = f" ({error.filename})" if error.filename else ""
    return DestinationError(
        f"{destination}: cannot be written: {reason}{where}; nothing was left there. "
        "Once that is put right, the same command continues where it stopped"
    )


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may have been cut off by a kill, and is then cut off here too."""
    if not journal.exists():
        return []
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        os.truncate(journal, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
