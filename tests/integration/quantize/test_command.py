"""`nybble quantize` as it is typed."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from engines.cli import register
from tests.support.checkpoint_edits import copy_checkpoint, edit_tensors
from tests.support.quantization import write_calibration


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def test_json_report(run, golden, tmp_path):
    samples = write_calibration(golden, tmp_path / "samples.jsonl")
    arguments = [golden / "base-mixtral", tmp_path / "out", "--format", "nvfp4", "--layout", "modelopt"]
    result = run(*arguments, "--calibration", samples, "--samples", 3, "--max-length", 20, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["num_calibration_tokens"] == 60
    assert report["num_calibration_samples"] == 3
    assert report["compression_ratio"] == pytest.approx(2.59, abs=0.01)
    assert len(report["modules"]) == 2 * (4 + 4 * 3)
    stored = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert stored["modules"] == report["modules"]
    assert "seconds" not in stored


def test_closing_table(run, golden, tmp_path):
    result = run(golden / "base-mistral", tmp_path / "out", "--format", "mxfp4", "--ignore", "*layers.0*")
    assert result.exit_code == 0, result.output
    for words in ("compressed-tensors layout, rtn", "times smaller", "Error by layer", "Largest errors"):
        assert words in result.stdout
    assert "layer 1" in result.stdout
    assert "layer 0" not in result.stdout


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("base-mistral", ["--format", "nvfp4"], "pass --calibration FILE.jsonl"),
        ("mistral-mxfp4-ct", ["--format", "mxfp4"], "is quantised already"),
        ("nowhere", ["--format", "mxfp4"], "is no directory"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run, golden, tmp_path, source, options, words):
    result = run(golden / source, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_named_and_leave_nothing(run, golden, tmp_path):
    source = copy_checkpoint(golden / "base-mistral", tmp_path / "source")

    def damage(tensors):
        dtype, array = tensors["model.layers.1.mlp.up_proj.weight"]
        array[3, 4] = 0x7FC0
        tensors["model.layers.1.mlp.up_proj.weight"] = (dtype, array)

    edit_tensors(source, damage)
    result = run(source, tmp_path / "out", "--format", "mxfp4")
    assert result.exit_code == 1
    assert "model.layers.1.mlp.up_proj.weight" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_existing_destination_is_left_alone(run, golden, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    result = run(golden / "base-mistral", tmp_path / "out", "--format", "mxfp4")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
