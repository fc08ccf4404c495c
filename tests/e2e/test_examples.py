"""Every example runs and shows what its description says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import NybbleProcess, serve
from tests.support.shipping import ROOT

EXAMPLES = ROOT / "examples"
GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="module")
def server() -> Iterator[NybbleProcess]:
    demo = EXAMPLES / "demo_model/checkpoints/mistral-mxfp4"
    with serve(demo, "--engine", "cpu", "--served-model-name", "nybble-demo") as running:
        yield running


def _run(name: str, *arguments: str | Path, url: str = "", status: int = 0) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "NYBBLE_URL": url},
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_chat(server: NybbleProcess) -> None:
    output = _run("chat.py", url=server.url)
    assert "The capital of France is Paris." in output
    assert "prompt tokens" in output


def test_stream(server: NybbleProcess) -> None:
    output = _run("stream.py", url=server.url)
    assert "Machine learning is" in output
    assert "hung up after 5 chunks" in output


def test_extract_json(server: NybbleProcess) -> None:
    assert _run("extract_json.py", url=server.url).startswith("name ")


def test_quantize_and_serve(tmp_path: Path) -> None:
    calibration = tmp_path / "samples.jsonl"
    calibration.write_text('{"text": "The capital of France is Paris."}\n' * 4, encoding="utf-8")
    output = _run("quantize_and_serve.py", GOLDEN / "base-mistral", tmp_path / "nvfp4", calibration)
    assert "answered: " in output
    assert (tmp_path / "nvfp4/hf_quant_config.json").is_file()


def test_compare_checkpoints(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.\n\nMachine learning finds patterns.\n", encoding="utf-8")
    base, quantised = GOLDEN / "base-mistral", GOLDEN / "mistral-mxfp4-ct"
    assert "mean divergence 0.0000" in _run("compare_checkpoints.py", base, base, text)
    # A model with random weights is not near its 4-bit form.
    assert "mean divergence" in _run(
        "compare_checkpoints.py", base, GOLDEN / "mixtral-nvfp4-modelopt", text, status=1
    )
    assert "same first choice" in _run("compare_checkpoints.py", quantised, quantised, text)


def test_every_example_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        if example.name != "__init__.py":
            assert f"]({example.name})" in listed
            assert f'"{example.name}"' in tested
