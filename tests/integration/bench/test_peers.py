"""Comparisons as users start them, with peers that are not installed: our own side is measured for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from benchmarks.peers import compare
from engines.errors import InvalidRequest
from service.cli import app

SHORT = ["--prefill-tokens", "40", "--decode-tokens", "9", "--concurrency", "1", "--concurrency", "3"]
PHASES = ["prefill 40", "decode, 1 stream", "decode, 3 streams"]


def test_peers_of_a_checkpoint(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "tiny", SHAPES["tiny"], "mxfp4", "compressed-tensors")
    chosen = ["--peers", "--peer", "vllm", "--peer", "llama.cpp", "--peer-models", str(tmp_path / "models")]
    rest = ["--repeats", "1", "--no-http", "--no-kernels", "--json", "--num-threads", "1"]
    result = CliRunner().invoke(
        app, ["bench", str(tmp_path / "tiny"), *SHORT, *rest, *chosen], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["peers"]
    assert [each["name"] for each in found["systems"]] == ["nybble MXFP4 W4A4", "nybble MXFP4 W4A16"]
    for system in found["systems"]:
        assert list(system["runs"]) == PHASES
        assert all(rate > 0 for rate in system["tokens_per_second"].values())
        assert system["peak_resident_bytes"] > 1 << 20
        assert system["versions"]["isa"]
    assert [(each["system"], each["name"]) for each in found["shares_of_limit"]] == [
        (system["name"], phase) for system in found["systems"] for phase in PHASES
    ]
    assert found["skipped"] == [
        {"name": "vLLM BF16", "reason": "not installed: No module named 'vllm'"},
        {"name": "llama.cpp MXFP4", "reason": "not installed: No module named 'llama_cpp'"},
        {"name": "llama.cpp Q4_0", "reason": "not installed: No module named 'llama_cpp'"},
    ]


def test_an_unknown_peer_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path), "--peers", "--peer", "ollama"])
    assert isinstance(result.exception, InvalidRequest)
    assert "there is no peer 'ollama'" in str(result.exception)


def test_a_choice_of_peers_without_peers_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path), "--peer", "vllm"])
    assert isinstance(result.exception, InvalidRequest)
    assert "--peers, which is missing" in str(result.exception)


def test_the_record_of_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, output = tmp_path / "models", tmp_path / "record.json"
    arguments = ["tiny", "--format", "nvfp4", "--models", str(models), "--peer", "transformers", *SHORT]
    rest = [
        "--rounds",
        "2",
        "--threads",
        "1",
        "--peer-python",
        "transformers=/no/python",
        "--note",
        "a trial",
    ]
    compare.main([*arguments, *rest, "--output", str(output)])
    record = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert record["command"].startswith("python -m benchmarks.peers.compare tiny --format nvfp4")
    assert record["model"] == {"shape": "tiny", "formats": ["nvfp4"]}
    assert record["note"] == "a trial"
    assert record["machine_limits"]["before"]["num_threads"] == 1
    assert [len(runs) for runs in record["systems"][0]["runs"].values()] == [2, 2, 2]
    assert len(record["skipped"]) == 1, record["skipped"]
    (skipped,) = record["skipped"]
    assert skipped["name"] == "Transformers BF16"
    assert skipped["reason"].startswith("cannot be started")
