"""The journal: what continues a run, what refuses to, and what a kill may leave behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engines.quantize.errors import DestinationError, SourceChanged
from engines.quantize.run_directory import RunDirectory, aside_path

IDENTITY = {"source": {"config.json": "aa", "model.safetensors": "bb"}, "format": "mxfp4"}


def open_directory(tmp_path: Path, **changes: object) -> RunDirectory:
    return RunDirectory(tmp_path / "out", IDENTITY | changes)


def interrupted(tmp_path: Path) -> Path:
    """A run that finished one stage and stopped."""
    directory = open_directory(tmp_path)
    (directory.output / "model.safetensors").write_bytes(b"half")
    directory.record({"stage": "embedding"})
    directory.close()
    return directory.path


def test_the_same_run_continues(tmp_path):
    interrupted(tmp_path)
    again = open_directory(tmp_path)
    assert again.is_resumed
    assert again.finished == [{"stage": "embedding"}]
    assert (again.output / "model.safetensors").read_bytes() == b"half"
    again.publish()
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not again.path.exists()


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path):
    path = interrupted(tmp_path)
    with (path / "journal.jsonl").open("a") as journal:
        journal.write('{"stage": "lay')
    again = open_directory(tmp_path)
    assert again.finished == [{"stage": "embedding"}]
    again.record({"stage": "layer 0"})
    again.close()
    assert open_directory(tmp_path).finished == [{"stage": "embedding"}, {"stage": "layer 0"}]


def test_a_kill_before_the_first_line_starts_anew(tmp_path):
    path = aside_path(tmp_path / "out")
    (path / "output").mkdir(parents=True)
    (path / "output" / "old").write_bytes(b"old")
    (path / "journal.jsonl").write_text('{"version"')
    directory = open_directory(tmp_path)
    assert not directory.is_resumed
    assert list(directory.output.iterdir()) == []


def test_a_changed_source_is_named(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(SourceChanged, match=r"changed since it began \(model\.safetensors\)"):
        open_directory(tmp_path, source={"config.json": "aa", "model.safetensors": "cc"})


def test_other_options_are_told(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(DestinationError, match='format was "mxfp4", is "nvfp4"'):
        open_directory(tmp_path, format="nvfp4")


def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    first = open_directory(tmp_path)
    with pytest.raises(DestinationError, match="another run is writing it"):
        open_directory(tmp_path)
    first.close()
    open_directory(tmp_path).close()


def test_an_existing_destination_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        open_directory(tmp_path)
    assert not aside_path(tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="Not a directory"):
        RunDirectory(tmp_path / "file" / "out", IDENTITY)


def test_a_read_only_target_is_told_and_nothing_is_made(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(DestinationError, match="out: cannot be written: Read-only file system"):
        open_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_run_that_finished_nothing(tmp_path):
    directory = open_directory(tmp_path)
    directory.discard_if_empty()
    directory.close()
    assert list(tmp_path.iterdir()) == []
    interrupted(tmp_path)
    again = open_directory(tmp_path)
    again.discard_if_empty()
    assert again.path.exists()
