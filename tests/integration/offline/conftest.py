"""The golden calibration ids, also as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


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
