"""One weight global scale for layers that TensorRT-LLM fuses: as they have it, or re-expressed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import Fp4Tensors
from engines.fp4 import e4m3
from engines.trtllm.errors import BuildRefused


@dataclass(frozen=True, slots=True, eq=False)
class FusedScale:
    """`global_scale` for all members; member i's block scale byte b is stored as `tables[i][b]`.

    A table is None where the bytes stay as they are.
    """

    global_scale: np.float32
    tables: tuple[NDArray[np.uint8] | None, ...]

    def stored_scales(self, index: int, scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Block scales of member `index`, uint8 of any shape, as the target stores them."""
        table = self.tables[index]
        return scales if table is None else table[scales]


def fuse_scales(modules: Sequence[Fp4Tensors]) -> FusedScale:
    """A scale under which every decoded weight (f32 of block scale times global scale) keeps its bits.

    Raises BuildRefused when the members' scales differ and no member's serves all of them exactly.
    """
    scales = [np.float32(module.global_scale) for module in modules]
    if len(set(scales)) == 1:
        return FusedScale(scales[0], (None,) * len(modules))
    for candidate in sorted(set(scales), reverse=True):
        tables = [
            None if scale == candidate else _exact_table(module.scales, scale, candidate)
            for module, scale in zip(modules, scales, strict=True)
        ]
        if all(table is not None or scale == candidate for table, scale in zip(tables, scales, strict=True)):
            return FusedScale(candidate, tuple(tables))
    listed = ", ".join(f"{module.name} {scale:.9g}" for module, scale in zip(modules, scales, strict=True))
    raise BuildRefused(
        f"{modules[0].name}: the layers fused with it have unequal weight_scale_2 ({listed}), and no common "
        "one keeps the weights bit-equal; TensorRT-LLM would compute a wrong model. Export the checkpoint "
        "again with shared scales (modelopt does it), or quantise it with `nybble quantize`"
    )


def _exact_table(
    stored: NDArray[np.uint8], scale: np.float32, wanted: np.float32
) -> NDArray[np.uint8] | None:
    """Which byte under `wanted` means what each byte in use meant under `scale`; None if one has no such."""
    used = np.unique(stored)
    with np.errstate(over="ignore"):
        before = e4m3.VALUES[used] * scale
        new = e4m3.encode((e4m3.VALUES[used].astype(np.float64) * scale / wanted).astype(np.float32))
        after = e4m3.VALUES[new] * wanted
    if not np.array_equal(before.view(np.uint32), after.view(np.uint32)):
        return None
    table = np.arange(256, dtype=np.uint8)
    table[used] = new
    return table
