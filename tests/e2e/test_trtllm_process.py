"""A `nybble serve --engine trtllm` process whose runtime, a fake, breaks: the exit status tells it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TESTS
from tests.support.process import NYBBLE

# Stands for the package on the path of another process; `build` makes the modules of the fake there.
_PACKAGE = """
import os, sys
from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.package import build
behaviour = Behaviour(**{os.environ["FAULT"]: True} if os.environ["FAULT"] else {})
sys.modules.update({name: module for name, module in build("1.4.0rc1", behaviour).items()})
"""
_NVIDIA_SMI = "#!/bin/sh\necho 'NVIDIA B200, 10.0, 184320, 580.95'\n"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("is_out_of_memory", "out of memory while TensorRT-LLM loaded"),
        ("is_hung", "did not answer a test prompt in 1 s"),
        ("is_rank_lost", "did not answer a test prompt in 1 s"),
    ],
)
def test_a_broken_runtime_ends_the_process_with_a_status(
    fault: str, message: str, golden: Path, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt_llm.py").write_text(_PACKAGE)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(_NVIDIA_SMI)
    smi.chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("NYBBLE_")},
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(TESTS.parent))),
        "PATH": os.pathsep.join((str(tmp_path), os.environ["PATH"])),
        "FAULT": fault,
    }
    checkpoint = golden / "mixtral-nvfp4-modelopt"
    ended = subprocess.run(
        [NYBBLE, "serve", str(checkpoint), "--engine", "trtllm", "--port", "0", "--stall-timeout", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert message in ended.stderr.splitlines()[-1]
