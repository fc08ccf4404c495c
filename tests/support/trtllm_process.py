"""`nybble serve --engine trtllm` as a process of its own, over TensorRT-LLM's fake."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import TESTS

# Stands for the package on the path of another process; `build` makes the modules of the fake there.
_PACKAGE = """
import os, sys
from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.package import build
fault, _, number = os.environ["FAULT"].partition("=")
behaviour = Behaviour(**{fault: int(number) if number else True} if fault else {})
sys.modules.update({name: module for name, module in build("1.4.0rc1", behaviour).items()})
"""


def fake_environment(directory: Path, *, fault: str = "", num_gpus: int = 1) -> dict[str, str]:
    """The environment in which `import tensorrt_llm` finds the fake and nvidia-smi shows B200s.

    `fault` is a switch of Behaviour, or "name=number". Writes into `directory`, which goes first on the PATH.
    """
    (directory / "tensorrt_llm.py").write_text(_PACKAGE)
    smi = directory / "nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "echo 'NVIDIA B200, 10.0, 184320, 580.95'\n" * num_gpus)
    smi.chmod(0o755)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("NYBBLE_")},
        "PYTHONPATH": os.pathsep.join((str(directory), str(TESTS.parent))),
        "PATH": os.pathsep.join((str(directory), os.environ["PATH"])),
        "FAULT": fault,
    }
