"""The memory benchmark: what it takes for resident memory, and what it allows."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine.memory import Resident, judged, resident
from engines.capacity.model_cost import LayerCost, ModelCost

COST = ModelCost(
    always=LayerCost(num_bytes=900_000_000),
    head=LayerCost(num_bytes=60_000_000),
    experts=LayerCost(),
    num_experts=0,
    num_experts_per_token=0,
    embedding_bytes=40_000_000,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=64,
)


def test_own_pages_and_those_of_files_are_told_apart(tmp_path: Path) -> None:
    size = 64 << 20
    before = resident(os.getpid())
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own.write(b"x" * size)
        grown = resident(os.getpid())
    assert grown.anonymous_bytes - before.anonymous_bytes >= size
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    before = resident(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[i] for i in range(0, size, mmap.PAGESIZE)) > 0
        grown = resident(os.getpid())
    assert grown.file_bytes - before.file_bytes >= size


def test_a_process_that_has_ended_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # its end; nobody has waited for it yet, so it is still listed
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError, match=str(process.pid)):
            resident(process.pid)


@pytest.mark.parametrize(
    ("anonymous", "file", "kv", "is_within"),
    [
        (1_300_000_000, 64_000_000, 0, True),
        (1_300_000_000, 66_000_000, 0, False),
        (1_400_000_000, 64_000_000, 100_000_000, True),
    ],
)
def test_the_bound_is_weights_cache_and_an_allowance_with_five_percent(
    anonymous: int, file: int, kv: int, is_within: bool
) -> None:
    verdict = judged(Resident(anonymous, file), COST, kv)
    assert verdict["is_within_bound"] is is_within
    assert verdict["beside_weights_and_kv_bytes"] == anonymous + file - kv - 1_000_000_000
