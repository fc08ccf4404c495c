"""The `nybble` command in this process, and the golden calibration ids as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli import main


@dataclass(frozen=True, slots=True)
class Result:
    """What a run of the command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `nybble` with these arguments."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["nybble", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfdbinary.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, out.decode(), err.decode())

    return run


@pytest.fixture(scope="session")
def calibration_ids(golden: Path) -> list[list[int]]:
    """16 samples of 64 ids, those the golden exports were calibrated with."""
    ids: list[list[int]] = json.loads((golden / "prompts.json").read_text())["calib_ids"]
    return ids


@pytest.fixture(scope="session")
def samples_file(calibration_ids: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as JSON lines."""
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in calibration_ids))
    return path
