from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_tensorrt_llm import Behaviour, installed
from tests.support.gpu_machines import B200


@pytest.fixture
def checkpoint(golden: Path) -> Path:
    return golden / "mixtral-nvfp4-modelopt"


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """TensorRT-LLM 1.4.0rc1 on a machine with B200s."""
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
    with installed("1.4.0rc1") as behaviour:
        yield behaviour
