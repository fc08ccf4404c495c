"""A `nybble serve --engine trtllm` process whose runtime, a fake, breaks: the exit status tells it."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from tests.support.process import NYBBLE
from tests.support.service import wait_until
from tests.support.trtllm_process import fake_environment


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
    checkpoint = golden / "mixtral-nvfp4-modelopt"
    ended = subprocess.run(
        [NYBBLE, "serve", str(checkpoint), "--engine", "trtllm", "--port", "0", "--stall-timeout", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        env=fake_environment(tmp_path, fault=fault),
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert message in ended.stderr.splitlines()[-1]


def test_a_rank_crash_while_serving_ends_the_process_with_a_status(golden: Path, tmp_path: Path) -> None:
    """The warm-up has 2 tokens; the rank crashes amid the first answer."""
    checkpoint = golden / "mixtral-nvfp4-modelopt"
    process = subprocess.Popen(
        [
            NYBBLE,
            "serve",
            str(checkpoint),
            "--engine",
            "trtllm",
            "--port",
            "0",
            "--served-model-name",
            "tiny",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=fake_environment(tmp_path, fault="crash_after_tokens=10"),
    )
    lines: list[str] = []
    assert process.stdout is not None
    stream = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(stream), daemon=True)
    reader.start()

    def url() -> str:
        found = re.search(r"listening on (http://\S+)", "".join(lines))
        return found.group(1) if found else ""

    with process:
        wait_until(lambda: bool(url()), seconds=60, what="an address")
        wait_until(lambda: httpx.get(f"{url()}/health/ready").status_code == 200, seconds=60, what="ready")
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 100, "ignore_eos": True}
        answer = httpx.post(f"{url()}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 503
        assert "rank 1 has crashed" in answer.text
        assert process.wait(timeout=60) == 1
        reader.join(timeout=10)
    assert "rank 1 has crashed" in "".join(lines)
