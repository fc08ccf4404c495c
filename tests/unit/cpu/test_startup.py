"""Options that cannot be met are refused before weights are read, in words that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineOptions, LoadProgress
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.startup import load_core
from engines.errors import CheckpointError, StartFailed
from engines.load_tracker import LoadTracker
from tests.support.random_checkpoint import RandomCheckpoint

BLOCK_BYTES = 16 * 2 * 2 * 1 * 32 * 2  # tokens, keys and values, layers, KV heads, head_dim, bfloat16


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return RandomCheckpoint().write(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activations": "int8"}, "checkpoint, bf16"),
        ({"numerics": "exact"}, "fast, reference"),
        ({"kv_cache_dtype": "int8"}, "auto, bfloat16, fp8"),
        ({"kv_cache_dtype": "fp8", "numerics": "reference"}, "for fast numerics.*--kv-cache-dtype"),
        ({"block_size": 0}, "at least 1"),
        ({"block_size": 512}, "at most 256"),
        ({"max_num_seqs": 0}, "at least 1"),
        ({"max_num_batched_tokens": 3, "max_num_seqs": 4}, "at least max_num_seqs"),
        ({"num_threads": -1}, "0 "),
        ({"speculation": "always"}, "auto, off"),
        ({"max_step_stretch": 0.5}, r"0 \(no bound\) or at least 1"),
        ({"max_step_stretch": float("nan")}, "at least 1"),
        ({"max_model_len": 257}, "2 to 256"),
        ({"max_model_len": 1}, "2 to 256"),
        ({"kv_cache_memory_bytes": 15 * BLOCK_BYTES}, "--kv-cache-memory"),
    ],
)
def test_impossible_options_are_refused(checkpoint: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StartFailed, match=said):
        load_core(EngineOptions(checkpoint, **options))


def test_no_checkpoint_is_refused() -> None:
    with pytest.raises(StartFailed, match="needs a checkpoint"):
        load_core(EngineOptions())


def test_a_missing_directory_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_core(EngineOptions(tmp_path / "nowhere"))


def test_the_kv_cache_takes_the_memory_it_is_given(checkpoint: Path) -> None:
    core = load_core(EngineOptions(checkpoint, kv_cache_memory_bytes=20 * BLOCK_BYTES + 1))
    assert core.info.num_blocks == 20
    wide = load_core(EngineOptions(checkpoint, kv_cache_memory_bytes=40 * BLOCK_BYTES, numerics="reference"))
    assert wide.info.num_blocks == 20
    narrow = load_core(
        EngineOptions(checkpoint, kv_cache_memory_bytes=20 * BLOCK_BYTES, kv_cache_dtype="fp8")
    )
    head_dim = Checkpoint.open(checkpoint).config.head_dim
    assert narrow.info.num_blocks == 20 * 2 * head_dim // (head_dim + 1)
    assert dict(narrow.info.details)["kv_cache_dtype"] == "fp8"


def test_left_to_itself_the_kv_cache_holds_all_slots_at_full_length(checkpoint: Path) -> None:
    core = load_core(EngineOptions(checkpoint, max_num_seqs=3, max_model_len=100))
    assert core.info.num_blocks == 3 * 7


def test_what_the_engine_says_of_itself(checkpoint: Path) -> None:
    info = load_core(EngineOptions(checkpoint, max_model_len=64)).info
    assert (info.engine, info.vocab_size, info.max_model_len) == ("cpu", 71, 64)
    assert info.eos_token_ids == {2}
    assert dict(info.details)["layout"] == "compressed-tensors mxfp4-pack-quantized"


def test_loading_counts_every_byte_of_the_linear_layers(golden: Path) -> None:
    for name in ("mistral-nvfp4-ct", "mixtral-nvfp4-modelopt", "base-mistral"):
        tracker = RecordingTracker()
        load_core(EngineOptions(golden / name), tracker)
        assert tracker.phases == ["checking the checkpoint", "repacking weights", "allocating the KV cache"]
        assert tracker.progress_of_weights[0].fraction == 0.0
        last = tracker.progress_of_weights[-1]
        assert last.done_bytes == tracker.counted_bytes == last.total_bytes
        assert last.fraction == 1.0
        tracker.end()
        assert tracker.progress() is None


class RecordingTracker(LoadTracker):
    """Remembers every state that another thread could have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []
        self.progress_of_weights: list[LoadProgress] = []
        self.counted_bytes = 0

    def begin(self, phase: str, *, total_bytes: int | None = None) -> None:
        super().begin(phase, total_bytes=total_bytes)
        if phase:
            self.phases.append(phase)
        self._remember()

    def advance(self, num_bytes: int) -> None:
        super().advance(num_bytes)
        self.counted_bytes += num_bytes
        self._remember()

    def _remember(self) -> None:
        progress = self.progress()
        if progress is not None and progress.total_bytes is not None:
            self.progress_of_weights.append(progress)
