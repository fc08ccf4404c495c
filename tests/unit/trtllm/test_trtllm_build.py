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
    # It would go on for ten seconds; told to end, it says so.
    body = f"trap 'touch {tmp_path}/told; exit' TERM; echo started; for i in $(seq 200); do sleep 0.05; done"
    program(tmp_path, body, monkeypatch)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build(("trtllm-build",), tmp_path / "build.log", interrupt)
    assert (tmp_path / "told").exists()


def test_a_program_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "", monkeypatch)
    (tmp_path / "trtllm-build").write_text("#!/no/such/interpreter\n")
    with pytest.raises(BuildRefused, match="cannot be started"):
        run_build(("trtllm-build",), tmp_path / "build.log")
