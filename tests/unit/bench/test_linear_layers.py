"""Linear layers measured by themselves: which products, what they are reckoned to read, their ceilings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.bench import linear_layers
from engines.bench.linear_layers import Product, load_products, measure_linear_layers
from engines.bench.timed_cases import Case, best_seconds
from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.linear import LinearOptions

W4A4 = LinearOptions(quantize_activations=True, reference_numerics=False)


def tiny(directory: Path, shape: str) -> Checkpoint:
    make_random_checkpoint(directory / "model", SHAPES[shape], "mxfp4", "compressed-tensors")
    return Checkpoint.open(directory / "model")


def by_name(checkpoint: Checkpoint) -> dict[str, Product]:
    return {product.name: product for product in load_products(checkpoint, W4A4)}


def test_products_are_those_the_engine_fuses(tmp_path: Path) -> None:
    products = by_name(tiny(tmp_path, "tiny"))
    assert list(products) == ["qkv", "attention output", "gate and up", "down", "head"]
    assert {name: (each.num_outputs, each.num_columns) for name, each in products.items()} == {
        "qkv": (128, 64),
        "attention output": (64, 64),
        "gate and up": (384, 64),
        "down": (64, 192),
        "head": (512, 64),
    }
    assert len(products["down"].linears) == 2  # one a layer
    assert products["down"].num_bytes == 64 * 192 // 2 + 64 * 2 * 2  # two superblocks, exponents shared
    assert products["head"].num_bytes == 512 * 64 * 2
    assert [each.is_fp4 for each in products.values()] == [True, True, True, True, False]


def test_every_expert_is_a_copy_of_one_product(tmp_path: Path) -> None:
    products = by_name(tiny(tmp_path, "tiny-moe"))
    assert list(products)[2:5] == ["router", "expert gate and up", "expert down"]
    assert len(products["expert down"].linears) == 2 * 4
    assert not products["router"].is_fp4


def test_layers_are_loaded_until_no_cache_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_layers, "_COLD_BYTES", 1000)
    assert len(by_name(tiny(tmp_path, "tiny"))["qkv"].linears) == 1


def test_each_product_beside_its_ceiling(tmp_path: Path) -> None:
    slow_memory = Device("cpu", "this CPU", None, 1, 1e3, 1e15, 1e9)
    phases = measure_linear_layers(
        tiny(tmp_path, "tiny"), W4A4, slow_memory, lambda _: None, row_counts=(1, 3), seconds_per_case=0.0
    )
    assert [(phase.num_rows, phase.name) for phase in phases[4:6]] == [(1, "head"), (3, "qkv")]
    qkv, head = phases[5], phases[4]
    num_bytes = 128 * 64 // 2 + 128 * 64 // 32
    assert qkv.limit == pytest.approx(3 * 1e3 / num_bytes)
    assert (qkv.bound, head.bound) == ("bandwidth", "bandwidth")
    assert qkv.bytes_per_second == pytest.approx(qkv.tokens_per_second / 3 * num_bytes)
    assert qkv.operations_per_second == pytest.approx(qkv.tokens_per_second * 2 * 128 * 64)
    assert qkv.share_of_limit == pytest.approx(qkv.tokens_per_second / qkv.limit)


def test_dense_layers_are_held_to_the_dense_peak(tmp_path: Path) -> None:
    fast_memory = Device("cpu", "this CPU", None, 1, 1e15, 4e9, 1e9)
    phases = measure_linear_layers(
        tiny(tmp_path, "tiny"), W4A4, fast_memory, lambda _: None, row_counts=(8,), seconds_per_case=0.0
    )
    limits = {phase.name: (phase.limit, phase.bound) for phase in phases}
    assert limits["head"] == (pytest.approx(1e9 / (2 * 512 * 64)), "arithmetic")
    assert limits["down"] == (pytest.approx(4e9 / (2 * 64 * 192)), "arithmetic")


def test_cases_take_turns_until_each_has_had_its_time() -> None:
    now = 0.0
    calls: list[str] = []

    def case(name: str, seconds: list[float]) -> Case:
        left = iter(seconds)

        def call() -> None:
            nonlocal now
            now += next(left, seconds[-1])
            calls.append(name)

        return Case(name, 1, 1, 1, call)

    best = best_seconds([case("long", [5.0, 3.0, 4.0]), case("short", [2.0, 1.0])], 6.0, lambda: now)
    assert best == [3.0, 1.0]
    assert calls == ["long", "short"] * 3 + ["short"] * 2


def test_every_call_uses_the_next_copy_whatever_its_rows() -> None:
    seen: list[int] = []

    class Copy:
        num_rows = 4

        def __init__(self, index: int) -> None:
            self.index = index

        def __call__(self, x: np.ndarray, out: np.ndarray, workspace: object) -> None:
            seen.append(self.index)

    product = Product("down", (Copy(0), Copy(1), Copy(2)), 2, 8, True)
    (_, few), (_, many) = linear_layers._cases([product], [3, 5])
    for _ in range(2):
        few.call()
        many.call()
    assert seen == [0, 1, 2, 0]
    assert (few.num_bytes, few.num_operations) == (8, 2 * 3 * 4 * 2)
    assert many.num_operations == 2 * 5 * 4 * 2
