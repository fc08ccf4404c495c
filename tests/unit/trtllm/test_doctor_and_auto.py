"""Who can run what here: `nybble doctor`, `--engine auto` and `inspect` give one answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from engines.base import EngineOptions
from engines.checkpoint.inspection import inspect
from engines.cli_doctor import register
from engines.doctor import find_checkpoints, judge
from engines.errors import CheckpointError
from engines.host_memory import parse_meminfo
from engines.processor import parse_cpuinfo
from engines.registry import choose_engine
from engines.trtllm.machine import Machine
from engines.trtllm.suitability import Fit
from tests.support.fake_tensorrt_llm import installed
from tests.support.gpu_machines import B200, GB10, H100, NO_GPU

NVFP4, MXFP4, PLAIN = "mixtral-nvfp4-modelopt", "mistral-mxfp4-ct", "base-mistral"


@pytest.fixture
def package() -> Iterator[None]:
    with installed("1.4.0rc1"):
        yield


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "machine", "fit", "reason", "command"),
    [
        (NVFP4, B200, Fit.RUNS, "all requirements", "nybble serve"),
        (NVFP4, GB10, Fit.RUNS, "all requirements", "nybble serve"),
        (NVFP4, H100, Fit.CANNOT, "no FP4 tensor cores", None),
        (NVFP4, NO_GPU, Fit.CANNOT, "no NVIDIA GPU", None),
        (PLAIN, H100, Fit.RUNS, "all requirements", "nybble serve"),
        (MXFP4, GB10, Fit.AFTER_CONVERT, "MXFP4 layers need a conversion", "--calibration"),
        ("mistral-nvfp4-ct", B200, Fit.AFTER_CONVERT, "conversion to modelopt's", "--to nvfp4-modelopt"),
    ],
)
def test_a_verdict_has_a_reason_and_a_command(
    name: str, machine: Machine, fit: Fit, reason: str, command: str | None, golden: Path
) -> None:
    cpu, finding = judge(golden / name, machine)
    assert cpu.fit is Fit.RUNS
    assert (finding.engine, finding.fit) == ("trtllm", fit)
    assert reason in finding.reason
    assert (finding.command is None) if command is None else (command in (finding.command or ""))


def test_without_the_package_the_command_installs_it(golden: Path) -> None:
    _, finding = judge(golden / NVFP4, B200)
    assert finding.fit is Fit.CANNOT
    assert "not installed" in finding.reason
    assert "pip install" in (finding.command or "")


@pytest.mark.parametrize(
    ("name", "machine", "options", "engine", "reason"),
    [
        (NVFP4, B200, {}, "trtllm", "NVIDIA B200 and tensorrt-llm can run"),
        (NVFP4, B200, {"activations": "bf16"}, "cpu", "activations"),
        (NVFP4, NO_GPU, {}, "cpu", "no NVIDIA GPU"),
        (MXFP4, GB10, {}, "cpu", "to use the GPU: nybble convert"),
        ("nowhere", GB10, {}, "cpu", "nowhere"),
    ],
)
@pytest.mark.usefixtures("package")
def test_auto_chooses_and_says_why(
    name: str,
    machine: Machine,
    options: dict[str, str],
    engine: str,
    reason: str,
    golden: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engines.trtllm.machine.detect_machine", lambda: machine)
    choice = choose_engine(EngineOptions(golden / name, **options))
    assert choice.name == engine
    assert reason in choice.reason


def test_auto_without_the_package_is_the_cpu(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.trtllm.machine.detect_machine", lambda: B200)
    choice = choose_engine(EngineOptions(golden / NVFP4))
    assert (choice.name, choice.reason) == ("cpu", "the package tensorrt_llm is not installed")


@pytest.mark.usefixtures("package")
def test_inspect_says_the_same(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.checkpoint.inspection.detect_machine", lambda: B200)
    verdicts = {verdict.engine: verdict for verdict in inspect(golden / NVFP4).engines}
    assert verdicts["trtllm"].runs


def run_doctor(*arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_doctor_shows_every_checkpoint_of_a_folder(golden: Path) -> None:
    document = json.loads(run_doctor(str(golden), "--json"))
    cells = {
        (Path(cell["checkpoint"]).name, cell["engine"]): cell["verdict"] for cell in document["findings"]
    }
    assert cells[(NVFP4, "cpu")] == "runs"
    assert cells[(MXFP4, "trtllm")] == "cannot"
    assert len(cells) == 2 * len(find_checkpoints(golden))
    assert document["machine"]["num_logical_cores"] >= 1
    assert document["machine"]["packages"]["tensorrt-llm"] is None


def test_doctor_prints_commands_in_one_piece(golden: Path) -> None:
    text = run_doctor(str(golden / MXFP4))
    assert f"$ nybble serve {golden / MXFP4} --engine cpu\n" in text
    assert "kernels" in run_doctor()


def test_doctor_of_a_broken_checkpoint_says_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    cpu, tensorrt_llm = judge(tmp_path, B200)
    assert cpu.fit is tensorrt_llm.fit is Fit.CANNOT
    assert "config.json" in cpu.reason
    assert "config.json" in tensorrt_llm.reason


def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        find_checkpoints(tmp_path)


def test_processors_of_both_kinds_are_understood() -> None:
    assert parse_cpuinfo("model name\t: Xeon\nflags\t: fpu avx2\n") == ("Xeon", {"fpu", "avx2"})
    assert parse_cpuinfo("Features\t: fp asimddp i8mm\n") == (None, {"fp", "asimddp", "i8mm"})
    assert parse_meminfo("MemTotal:  8 kB\nHugePages_Total: 0\n") == {"MemTotal": 8192}
