"""`nybble bench` on a tiny checkpoint: engine and service, started as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.errors import InvalidRequest
from service.cli import app

SHORT = ["--repeats", "1", "--concurrency", "1", "--concurrency", "3", "--prefill-tokens", "40"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench") / "tiny"
    make_random_checkpoint(directory, SHAPES["tiny"], "mxfp4", "compressed-tensors")
    return directory


def test_engine_and_service_in_one_report(checkpoint: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    arguments = ["bench", str(checkpoint), *SHORT, "--decode-tokens", "9", "--json", "--plot", str(plot)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [phase["name"] for phase in report["phases"]] == [
        "prefill 40",
        "decode, 1 stream",
        "decode, 3 streams",
    ]
    layer = ["qkv", "attention output", "gate and up", "down", "head"]
    assert [(each["num_rows"], each["name"]) for each in report["kernels"]] == [
        (num_rows, name) for num_rows in (1, 8, 256) for name in layer
    ]
    for phase in report["phases"] + report["kernels"]:
        assert phase["tokens_per_second"] > 0
        assert phase["share_of_limit"] == pytest.approx(phase["tokens_per_second"] / phase["limit"])
    assert [phase["num_streams"] for phase in report["http"]] == [1, 3]
    for phase in report["http"]:
        assert phase["num_requests"] == phase["num_streams"]
        assert 0 <= phase["inter_token"]["p50_seconds"] <= phase["inter_token"]["maximum_seconds"]
        assert phase["offline_tokens_per_second"] > 0
    assert report["machine_limits"]["read_bytes_per_second"] > 0
    assert report["machine"]["num_cores"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_tables_for_people(checkpoint: Path) -> None:
    arguments = ["bench", str(checkpoint), *SHORT, "--decode-tokens", "9", "--no-http"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "GFLOP/s" in result.stdout
    assert "prefill 40" in result.stdout
    assert "decode, 3 streams" in result.stdout


def test_more_tokens_than_the_model_has_positions_for(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(checkpoint), "--prefill-tokens", "5000", "--no-http"])
    assert isinstance(result.exception, InvalidRequest)
    assert "5001 tokens" in str(result.exception)
    assert "2048" in str(result.exception)


def test_linear_layers_are_left_out_on_request(checkpoint: Path) -> None:
    arguments = [
        "bench",
        str(checkpoint),
        *SHORT,
        "--decode-tokens",
        "4",
        "--no-http",
        "--no-kernels",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kernels"] == []
