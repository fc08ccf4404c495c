"""The linear layers of a checkpoint by themselves: its shapes and weights, activation quantizing included.

What the model adds to them (attention, norms, Python) is the distance from these figures to those of whole
phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from engines.bench.phase import KernelPhase, OnProgress
from engines.bench.timed_cases import Case, best_seconds
from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu.linear import Linear, LinearOptions, build_linear, read_bytes
from engines.cpu.workspace import Workspace

ROW_COUNTS = (1, 8, 256)
_COLD_BYTES = 512 << 20
_SECONDS_PER_CASE = 0.25

Module = DenseTensors | Fp4Tensors


@dataclass(frozen=True, slots=True)
class Product:
    """The same product of several layers: modules that read one input, fused as the engine fuses them."""

    name: str
    linears: tuple[Linear, ...]
    num_columns: int
    num_bytes: int
    is_fp4: bool

    @property
    def num_outputs(self) -> int:
        """Outputs of one row."""
        return self.linears[0].num_rows


def measure_linear_layers(
    checkpoint: Checkpoint,
    options: LinearOptions,
    machine: Device,
    on_progress: OnProgress,
    *,
    row_counts: Sequence[int] = ROW_COUNTS,
    seconds_per_case: float = _SECONDS_PER_CASE,
) -> tuple[KernelPhase, ...]:
    """Each product of a layer, and the head, with every number of rows, in the order of the model.

    Loads layers until their weights are beyond any cache, or all of them, and frees them at the end.
    """
    on_progress("linear layers, loading")
    products = list(load_products(checkpoint, options))
    on_progress("linear layers")
    cases = _cases(products, row_counts)
    best = best_seconds([case for _, case in cases], seconds_per_case)
    return tuple(
        _phase(product, case, seconds, machine) for (product, case), seconds in zip(cases, best, strict=True)
    )


def load_products(checkpoint: Checkpoint, options: LinearOptions) -> Iterator[Product]:
    """The products of the first layers, layer after layer; then the head."""
    linears: dict[str, list[Linear]] = {}
    firsts: dict[str, Sequence[Module]] = {}
    loaded_bytes = 0
    for layer in range(checkpoint.config.num_layers):
        for name, modules in _layer_modules(checkpoint, layer):
            linears.setdefault(name, []).append(build_linear(modules, options))
            firsts.setdefault(name, modules)
            loaded_bytes += sum(module.num_bytes for module in modules)
        checkpoint.tensors.release_pages()
        if loaded_bytes >= _COLD_BYTES:
            break
    firsts["head"] = [checkpoint.linear("lm_head")]
    linears["head"] = [build_linear(firsts["head"], options)]
    for name, modules in firsts.items():
        yield Product(
            name=name,
            linears=tuple(linears[name]),
            num_columns=_num_columns(modules[0]),
            num_bytes=sum(map(read_bytes, modules)),
            is_fp4=isinstance(modules[0], Fp4Tensors),
        )


def _layer_modules(checkpoint: Checkpoint, layer: int) -> Iterator[tuple[str, Sequence[Module]]]:
    prefix = f"model.layers.{layer}"
    yield "qkv", [checkpoint.linear(f"{prefix}.self_attn.{part}_proj") for part in ("q", "k", "v")]
    yield "attention output", [checkpoint.linear(f"{prefix}.self_attn.o_proj")]
    if checkpoint.config.num_experts == 0:
        yield "gate and up", [checkpoint.linear(f"{prefix}.mlp.{part}_proj") for part in ("gate", "up")]
        yield "down", [checkpoint.linear(f"{prefix}.mlp.down_proj")]
        return
    yield "router", [checkpoint.router(layer)]
    for expert in range(checkpoint.config.num_experts):
        yield "expert gate and up", [checkpoint.expert(layer, expert, part) for part in ("gate", "up")]
        yield "expert down", [checkpoint.expert(layer, expert, "down")]


def _cases(products: Sequence[Product], row_counts: Sequence[int]) -> list[tuple[Product, Case]]:
    """All products with the first row count, then with the next, from one rotation of their copies.

    What the last call read must not be read again.
    """
    workspace = Workspace()
    rotations = {product.name: cycle(product.linears) for product in products}
    return [
        (product, _case(product, rotations[product.name], num_rows, workspace))
        for num_rows in row_counts
        for product in products
    ]


def _case(product: Product, rotation: Iterator[Linear], num_rows: int, workspace: Workspace) -> Case:
    x = np.random.default_rng(1).standard_normal((num_rows, product.num_columns), np.float32)
    out = np.empty((num_rows, product.num_outputs), np.float32)

    def call() -> None:
        next(rotation)(x, out, workspace)

    operations = 2 * num_rows * product.num_outputs * product.num_columns
    return Case(product.name, num_rows, product.num_bytes, operations, call)


def _phase(product: Product, case: Case, seconds: float, machine: Device) -> KernelPhase:
    by_bandwidth = case.num_bytes / machine.bandwidth
    rate = machine.fp4_flops if product.is_fp4 else machine.bf16_flops
    by_arithmetic = case.num_operations / rate
    return KernelPhase(
        name=product.name,
        num_rows=case.num_rows,
        num_outputs=product.num_outputs,
        num_columns=product.num_columns,
        is_fp4=product.is_fp4,
        tokens_per_second=case.num_rows / seconds,
        bytes_per_second=case.num_bytes / seconds,
        operations_per_second=case.num_operations / seconds,
        limit=case.num_rows / max(by_bandwidth, by_arithmetic),
        bound="bandwidth" if by_bandwidth >= by_arithmetic else "arithmetic",
    )


def _num_columns(module: Module) -> int:
    return module.num_columns if isinstance(module, Fp4Tensors) else module.shape[1]
