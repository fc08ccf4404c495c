"""Every kernel test runs on each instruction set of this machine; the setting is put back afterwards."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels

ISAS = kernels.available_isas()
if "avx512" in ISAS:
    ISAS.append("amx-emulated")  # the AMX kernels, on tiles in software


@pytest.fixture
def isa_restored() -> Iterator[None]:
    before = kernels.isa_name()
    yield
    kernels.set_isa(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, isa_restored: None) -> str:
    kernels.set_isa(request.param)
    return str(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = kernels.num_threads()
    yield
    kernels.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250)


_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "U8": np.uint8, "F8_E4M3": ml_dtypes.float8_e4m3fn}


@pytest.fixture(scope="session")
def golden_vectors(golden: Path) -> Callable[[str], dict[str, NDArray[Any]]]:
    """Tensors of a golden file; safetensors' own NumPy reader knows no E4M3."""

    @functools.cache
    def read(name: str) -> dict[str, NDArray[Any]]:
        data = (golden / "vectors" / f"{name}.safetensors").read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        return {
            key: np.frombuffer(
                data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
                _DTYPES[entry["dtype"]],
            ).reshape(entry["shape"])
            for key, entry in header.items()
            if key != "__metadata__"
        }

    return read
