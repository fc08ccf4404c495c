"""Running trtllm-build: lines as they come, and an end to it when we are interrupted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.trtllm.errors import BuildRefused
from engines.trtllm.trtllm_build import run_build


def program(directory: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "trtllm-build"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def test_both_streams_are_logged_and_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo first; echo second >&2; printf 'no \\377 text'", monkeypatch)
    lines: list[str] = []
    run_build(("trtllm-build", "--x"), tmp_path / "build.log", lines.append)
    assert lines == ["first", "second", "no \N{REPLACEMENT CHARACTER} text"]
    assert (tmp_path / "build.log").read_text().splitlines()[:2] == ["$ trtllm-build --x", "first"]


def test_an_interruption_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo $$; exec tail -f /dev/null", monkeypatch)
    process_ids: list[int] = []

    def interrupt(line: str) -> None:
        process_ids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build(("trtllm-build",), tmp_path / "build.log", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(process_ids[0], 0)


def test_a_program_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "", monkeypatch)
    (tmp_path / "trtllm-build").write_text("#!/no/such/interpreter\n")
    with pytest.raises(BuildRefused, match="cannot be started"):
        run_build(("trtllm-build",), tmp_path / "build.log")
