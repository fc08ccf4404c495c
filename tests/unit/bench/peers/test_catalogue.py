"""Who takes part: systems and precisions for a checkpoint, names and interpreters that users give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.bench.peers import converted_models
from engines.bench.peers.catalogue import FAMILIES, Choice, checked_families, parsed_pythons, prepared_systems
from engines.bench.peers.conversion.bfloat16_checkpoint import write_bfloat16
from engines.bench.peers.converted_models import ConvertedModels, fingerprint
from engines.bench.peers.system import PeerUnavailable
from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import InvalidRequest

FAILING_TOOLS = "#!/bin/sh\necho export broke >&2\nexit 3\n"
WORKING_TOOLS = '#!/bin/sh\necho "$2 $5" > "$4/openvino_model.xml"\n'


def quiet(_: str) -> None:
    """Nobody watches."""


def made(tmp_path: Path, format: str) -> Path:
    make_random_checkpoint(tmp_path / format, SHAPES["tiny"], format, "compressed-tensors")
    return tmp_path / format


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_one_format(tmp_path: Path) -> None:
    choice = Choice(tmp_path / "models", pythons={"OpenVINO": script(tmp_path, WORKING_TOOLS)})
    results = prepared_systems([made(tmp_path, "nvfp4")], choice, quiet)
    assert [result.system.name for result in results] == [
        "nybble NVFP4 W4A4",
        "nybble NVFP4 W4A16",
        "vLLM BF16",
        "Transformers BF16",
        "OpenVINO NVFP4",
        "OpenVINO INT4",
        "llama.cpp NVFP4",
        "llama.cpp Q4_0",
    ]
    assert [result.skipped for result in results] == [None] * 8
    assert [result.system.is_peer for result in results] == [False] * 2 + [True] * 6
    assert all(result.system.model.exists() for result in results)
    by_name = {result.system.name: result.system for result in results}
    assert by_name["nybble NVFP4 W4A16"].settings["activations"] == "bf16"
    assert by_name["llama.cpp NVFP4"].model.name == "nvfp4.gguf"
    assert by_name["OpenVINO INT4"].python == tmp_path / "python"
    assert by_name["vLLM BF16"].python == Path(sys.executable)
    converted = (by_name["OpenVINO NVFP4"].model / "openvino_model.xml").read_text()
    assert converted == "engines.bench.peers.conversion.openvino_ir nvfp4\n"


def test_two_formats_share_what_is_no_fp4(tmp_path: Path) -> None:
    choice = Choice(tmp_path / "models", families=("Transformers", "llama.cpp"))
    results = prepared_systems([made(tmp_path, "mxfp4"), made(tmp_path, "nvfp4")], choice, quiet)
    assert [result.system.name for result in results][4:] == [
        "Transformers BF16",
        "llama.cpp MXFP4",
        "llama.cpp Q4_0",
        "llama.cpp NVFP4",
    ]


def test_only_the_systems_that_are_named(tmp_path: Path) -> None:
    choice = Choice(tmp_path / "models", systems=("llama.cpp q4_0", "nybble NVFP4 W4A4"))
    results = prepared_systems([made(tmp_path, "mxfp4"), made(tmp_path, "nvfp4")], choice, quiet)
    assert [result.system.name for result in results] == ["nybble NVFP4 W4A4", "llama.cpp Q4_0"]
    (converted,) = (tmp_path / "models").glob("*/*")
    assert converted.name == "q4_0.gguf"


def test_a_system_that_does_not_exist_is_refused_before_anything_is_converted(tmp_path: Path) -> None:
    choice = Choice(tmp_path / "models", ("llama.cpp",), systems=("llama.cpp NVFP4",))
    expected = (
        "no system 'llama.cpp NVFP4' here; expected nybble MXFP4 W4A4, nybble MXFP4 W4A16, llama.cpp MX"
    )
    with pytest.raises(InvalidRequest, match=expected):
        prepared_systems([made(tmp_path, "mxfp4")], choice, quiet)
    assert not (tmp_path / "models").exists()


def test_a_failed_conversion_is_a_reason(tmp_path: Path) -> None:
    choice = Choice(tmp_path / "models", ("OpenVINO",), {"OpenVINO": script(tmp_path, FAILING_TOOLS)})
    results = prepared_systems([made(tmp_path, "mxfp4")], choice, quiet)
    reason = "conversion to OpenVINO IR ended with status 3: export broke"
    assert [result.skipped for result in results] == [None, None, reason, reason]
    assert not list((tmp_path / "models").glob("*/.openvino*"))


def test_models_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    directory = made(tmp_path, "mxfp4")
    first = ConvertedModels(tmp_path / "models", directory, said.append)
    path = first.gguf("mxfp4")
    again = ConvertedModels(tmp_path / "models", directory, said.append)
    assert again.gguf("mxfp4") == path
    assert said == ["converting to mxfp4.gguf"]
    before = fingerprint(directory)
    monkeypatch.setattr(converted_models, "_WRITER_VERSION", "another")
    assert fingerprint(directory) != before


def test_another_checkpoint_of_that_name_is_another_model(tmp_path: Path) -> None:
    directory = made(tmp_path, "mxfp4")
    before = fingerprint(directory)
    config = directory / "config.json"
    config.write_text(config.read_text() + "\n")
    assert fingerprint(directory) != before


def test_tools_that_cannot_be_run(tmp_path: Path) -> None:
    models = ConvertedModels(tmp_path / "models", made(tmp_path, "mxfp4"), quiet)
    with pytest.raises(PeerUnavailable, match=r"cannot be run: .*/no/python"):
        models.openvino("int4", Path("/no/python"))


def test_names_of_peers() -> None:
    assert checked_families([]) == FAMILIES
    assert checked_families(["LLAMA.CPP", "vllm", "vLLM"]) == ("vLLM", "llama.cpp")
    with pytest.raises(
        InvalidRequest, match=r"no peer 'llama'; expected vLLM, Transformers, OpenVINO, llama\.cpp"
    ):
        checked_families(["llama"])


def test_interpreters() -> None:
    assert parsed_pythons(["openvino=/venv/bin/python"]) == {"OpenVINO": Path("/venv/bin/python")}
    assert parsed_pythons(["vLLM=python"]) == {"vLLM": Path.cwd() / "python"}
    for text in ("vllm", "vllm=", "=x"):
        with pytest.raises(InvalidRequest):
            parsed_pythons([text])


def test_checkpoints_without_fp4(tmp_path: Path) -> None:
    directory = made(tmp_path, "mxfp4")
    write_bfloat16(Checkpoint.open(directory), tmp_path / "plain")
    with pytest.raises(InvalidRequest, match="holds no FP4 weights"):
        prepared_systems([tmp_path / "plain"], Choice(tmp_path / "models"), quiet)
