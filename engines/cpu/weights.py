"""Weights in the layout that the compiled kernels read: repacked once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels
from engines.cpu.array_checks import DENSE_DTYPES, FLOAT32, UINT8, check_array

Float32Array = NDArray[np.float32]


class Fp4Shard(NamedTuple):
    """One FP4 matrix as a checkpoint stores it."""

    packed: NDArray[np.uint8]
    """[N, K/2]; the low nibble is the even column."""
    scales: NDArray[np.uint8]
    """[N, K/group_size], the scales' bits (E8M0 or E4M3)."""
    scale_table: Float32Array
    """[256], scale bits -> float32 multiplier with the global scale folded in."""


class Fp4Weight(_kernels.Fp4Weight):
    """FP4 weight [num_rows, num_columns] repacked for the kernels; the shards may be freed afterwards.

    Several shards (q, k and v, say) stack along the rows, each with its own scale table; table entries in use
    must not be negative. `round_to_bfloat16` makes `decode` and `fp4_linear_f32` round every decoded value to
    bfloat16; `fp4_linear_w4a4` ignores it, and is alone in multiplying its sums by `activation_scale`: what
    `quantize_nvfp4` leaves out of its scales.

    Besides `num_rows`, `num_columns`, `group_size`, `round_to_bfloat16` and `num_bytes` it has `shard_rows`,
    the rows of each shard in order, and `decode()`: the dequantized weight, float32 [num_rows, num_columns].
    """

    __slots__ = ()

    def __init__(
        self,
        shards: Sequence[Fp4Shard],
        group_size: int,
        round_to_bfloat16: bool = False,
        activation_scale: float = 1.0,
    ) -> None:
        if group_size not in (16, 32):
            raise ValueError(f"group_size must be 16 or 32, got {group_size}")
        if not shards:
            raise ValueError("shards is empty: an FP4 weight needs at least one")
        num_columns = 2 * shards[0][0].shape[-1]
        if num_columns == 0 or num_columns % group_size:
            raise ValueError(
                f"packed holds {num_columns} columns, expected a positive multiple of {group_size}"
            )
        for i, (packed, scales, scale_table) in enumerate(shards):
            check_array(f"shards[{i}] packed", packed, UINT8, (None, num_columns // 2))
            if packed.shape[0] == 0:
                raise ValueError(f"shards[{i}] packed has no rows")
            check_array(f"shards[{i}] scales", scales, UINT8, (packed.shape[0], num_columns // group_size))
            check_array(f"shards[{i}] scale_table", scale_table, FLOAT32, (256,))
        super().__init__(list(shards), group_size, round_to_bfloat16, activation_scale)


def mxfp4_read_bytes(scales: NDArray[np.uint8]) -> int:
    """Bytes that a product reads of an MXFP4 matrix with scale bytes [N, K/32]: codes, and scales as packed.

    Where 16 outputs' exponents may be shared, two bytes for four blocks instead of four
    (csrc/packed_scales.h). Raises TypeError or ValueError for another array.
    """
    check_array("scales", scales, UINT8, (None, None))
    num_rows, num_blocks = map(int, scales.shape)
    num_sharing = _kernels.num_rows_sharing_exponents(scales)
    shared_bytes = 2 * -(-num_blocks // 4)
    return num_rows * num_blocks * 16 + num_sharing * shared_bytes + (num_rows - num_sharing) * num_blocks


class DenseWeight(_kernels.DenseWeight):
    """Unquantized weight [N, K] repacked for `dense_linear`: float32, float16, or bfloat16 as uint16 bits.

    It has `num_rows` (N), `num_columns` (K) and `num_bytes`.
    """

    __slots__ = ()

    def __init__(self, values: NDArray[Any]) -> None:
        check_array("values", values, DENSE_DTYPES, (None, None))
        if 0 in values.shape:
            raise ValueError(f"values must not be empty, got shape {list(values.shape)}")
        super().__init__(values)


class HeadScreen(_kernels.HeadScreen):
    """An int8 copy of a head that says which outputs can be a row's largest; those alone are then computed.

    `likeliest(x, out)` fills `out`, int64 [M], with what `token_draw.likeliest_tokens` finds in
    `kernels.dense_linear(x)`, x float32 [M, K]: the same tokens, for half the bytes and integer products
    (csrc/head_screen.h). `fits(K)` says whether there is one: the kernels in use need VNNI, and K has to be
    even and at most 65,536. `bytes_of(N, K)` is what it takes, and reads. ValueError for a head that does not
    fit.
    """

    __slots__ = ()
