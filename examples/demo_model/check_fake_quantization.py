"""Compare distillation's rounding with the engine's: `python -m examples.demo_model.check_fake_quantization`.

Needs PyTorch. Random numbers of many magnitudes, exact ties, zeros and saturating values, in both formats;
exits with 1 when a single value differs.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray

from engines.fp4 import bfloat16, mxfp4, nvfp4
from examples.demo_model.fake_quantization import round_mxfp4, round_nvfp4

_ROWS, _COLUMNS = 512, 256


def samples() -> NDArray[np.float32]:
    """float32 [rows, columns]: normal numbers times powers of two, BF16 ones, ties of E2M1, zeros."""
    random = np.random.Generator(np.random.PCG64(0))
    values = random.standard_normal((_ROWS, _COLUMNS), dtype=np.float32)
    values *= np.exp2(random.integers(-12, 6, (_ROWS, _COLUMNS // 16))).astype(np.float32).repeat(16, axis=1)
    values[::4] = bfloat16.round_trip(values[::4])
    values[1::4] = random.integers(-28, 29, values[1::4].shape).astype(np.float32) / 4
    values[2::8, : _COLUMNS // 2] = 0
    return values


def num_differences() -> dict[str, int]:
    """How many values differ, by format."""
    values = samples()
    amax = np.abs(values).max()
    for_mxfp4 = round_mxfp4(torch.from_numpy(values)).numpy()
    for_nvfp4 = round_nvfp4(torch.from_numpy(values), torch.tensor(amax)).numpy()
    return {
        "mxfp4": int((for_mxfp4 != mxfp4.quantize(values).dequantized()).sum()),
        "nvfp4": int((for_nvfp4 != nvfp4.quantize_weight_modelopt(values).dequantized()).sum()),
    }


def main() -> int:
    """Print the counts; 1 when there is a difference."""
    found = num_differences()
    for format, count in found.items():
        print(f"{format}: {count} of {_ROWS * _COLUMNS} values differ")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
