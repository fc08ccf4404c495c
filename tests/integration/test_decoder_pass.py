"""The pass in C++ gives the bits of the model's layers, run kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu import kernels
from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import LinearOptions
from engines.cpu.models.decoder import Decoder
from engines.cpu.models.loader import load_decoder
from tests.support.checkpoint_variants import VARIANTS

BLOCK_SIZE = 4
MAX_MODEL_LEN = 64


# The best of this machine, and tiles in software, whose products apply a feed-forward layer's gates.
ISAS = [kernels.isa_name(), *(["amx-emulated"] if "avx512" in kernels.available_isas() else [])]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = kernels.isa_name()
    kernels.set_isa(request.param)
    yield
    kernels.set_isa(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = kernels.num_threads()
    kernels.set_num_threads(2)
    yield
    kernels.set_num_threads(before)


class Model:
    """A decoder with a cache of its own."""

    def __init__(self, directory: Path, *, quantize_activations: bool, reference: bool = False) -> None:
        checkpoint = Checkpoint.open(directory)
        self.decoder: Decoder = load_decoder(
            checkpoint, LinearOptions(quantize_activations, reference), MAX_MODEL_LEN
        )
        shape = KvCacheShape.of(checkpoint.config, BLOCK_SIZE, reference_numerics=reference)
        self.cache = KvCache(shape, 40)
        self.vocab_size = checkpoint.config.vocab_size

    def cached(self) -> list[np.ndarray]:
        return [array.copy() for array in (*self.cache.keys, *self.cache.values)]


def batch_of(token_ids: list[list[int]], starts: list[int]) -> ForwardBatch:
    """Sequence s has `token_ids[s]` from position `starts[s]` on, in blocks s, s + 3, s + 6, ..."""
    tables = np.array([[s + 3 * i for i in range(12)] for s in range(len(token_ids))], np.int32)
    positions = [np.arange(start, start + len(ids)) for start, ids in zip(starts, token_ids, strict=True)]
    slots = [
        table[position // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        for table, position in zip(tables, positions, strict=True)
    ]
    counts = [len(ids) for ids in token_ids]
    return ForwardBatch(
        token_ids=np.concatenate(token_ids).astype(np.int32),
        positions=np.concatenate(positions).astype(np.int64),
        slots=np.concatenate(slots),
        block_tables=tables,
        query_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array([s + n for s, n in zip(starts, counts, strict=True)], np.int32),
        logits_rows=np.arange(sum(counts) - 1, -1, -2).astype(np.int64),
    )


@pytest.mark.usefixtures("isa", "two_threads")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("quantize_activations", [True, False], ids=["w4a4", "w4a16"])
def test_one_call_equals_kernel_by_kernel(tmp_path: Path, name: str, quantize_activations: bool) -> None:
    directory = VARIANTS[name].write(tmp_path / "model")
    model = Model(directory, quantize_activations=quantize_activations)
    stepwise = Model(directory, quantize_activations=quantize_activations)
    assert model.decoder.is_compiled
    rng = np.random.default_rng(3)
    for starts, counts in (([0, 0], [17, 5]), ([17, 5], [1, 13]), ([18, 18, 0], [1, 1, 1])):
        batch = batch_of([rng.integers(0, model.vocab_size, n).tolist() for n in counts], starts)
        logits, likeliest = model.decoder.step(batch, model.cache)
        expected = stepwise.decoder.forward_stepwise(batch, stepwise.cache)
        assert np.isfinite(expected).all()
        assert np.array_equal(logits, expected)
        assert likeliest.tolist() == expected.argmax(axis=1).tolist()
    for mine, theirs in zip(model.cached(), stepwise.cached(), strict=True):
        assert np.array_equal(mine, theirs)


def test_reference_numerics_run_kernel_by_kernel(golden: Path) -> None:
    model = Model(golden / "mistral-mxfp4-ct", quantize_activations=False, reference=True)
    assert not model.decoder.is_compiled


def test_a_batch_without_wanted_logits_fills_the_cache(golden: Path) -> None:
    model = Model(golden / "mistral-mxfp4-ct", quantize_activations=True)
    batch = batch_of([[1, 2, 3]], [0])
    nothing_wanted = ForwardBatch(
        batch.token_ids,
        batch.positions,
        batch.slots,
        batch.block_tables,
        batch.query_starts,
        batch.context_lens,
        np.empty(0, np.int64),
    )
    assert model.decoder.forward(nothing_wanted, model.cache).shape == (0, model.vocab_size)
    assert all(array[0].any() for array in model.cached())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", 1 << 20, "token_ids"),
        ("positions", MAX_MODEL_LEN, "positions"),
        ("slots", 40 * BLOCK_SIZE, "slots"),
        ("block_tables", 40, "block_tables"),
        ("logits_rows", 3, "logits_rows"),
        ("context_lens", 2, "context_lens"),
    ],
)
def test_an_index_outside_its_table_is_refused(golden: Path, field: str, value: int, message: str) -> None:
    model = Model(golden / "mistral-mxfp4-ct", quantize_activations=True)
    batch = batch_of([[1, 2, 3]], [0])
    getattr(batch, field).flat[0] = value
    with pytest.raises(ValueError, match=message):
        model.decoder.forward(batch, model.cache)
