"""One .safetensors file, mapped into memory and checked before anything is taken from it.

Layout: 8 bytes little-endian header length, a JSON header, then the data. Every tensor has a dtype, a shape
and a pair of offsets into the data; the tensors lie end to end and cover it exactly. The header is not
trusted.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.json_file import parse_json_object, require_regular_file
from engines.errors import MalformedCheckpoint

HEADER_LIMIT_BYTES = 100_000_000
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 1 << 48
_MAX_ELEMENTS = 1 << 60

# How a stored dtype is viewed: NumPy has neither bfloat16 nor 8-bit floats, so those are raw bits.
VIEW_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "U8": np.dtype(np.uint8),
        "I8": np.dtype(np.int8),
        "F8_E4M3": np.dtype(np.uint8),
        "F8_E5M2": np.dtype(np.uint8),
        "F8_E8M0": np.dtype(np.uint8),
        "I16": np.dtype("<i2"),
        "U16": np.dtype("<u2"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype("<u2"),
        "I32": np.dtype("<i4"),
        "U32": np.dtype("<u4"),
        "F32": np.dtype("<f4"),
        "I64": np.dtype("<i8"),
        "U64": np.dtype("<u8"),
        "F64": np.dtype("<f8"),
    }
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. `begin` and `end` count bytes from the start of the data section."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name!r}"


class SafetensorsFile:
    """An open file. `tensors` maps names to places; `view` gives read-only arrays into the map.

    The map lives as long as the object or any view of it.
    """

    def __init__(self, path: Path) -> None:
        """Map and check `path`. Raises MalformedCheckpoint."""
        self.path = path
        size = require_regular_file(path)
        if size < _LENGTH_BYTES:
            raise MalformedCheckpoint(
                f"{path}: has {size} bytes; a safetensors file starts with 8 (truncated?)"
            )
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise MalformedCheckpoint(f"{path}: cannot be mapped into memory ({error})") from None
        size = len(self._map)
        header_length = int.from_bytes(self._map[:_LENGTH_BYTES], "little")
        if header_length > HEADER_LIMIT_BYTES or header_length > size - _LENGTH_BYTES:
            raise MalformedCheckpoint(
                f"{path}: the header claims {header_length} bytes; the file has {size - _LENGTH_BYTES} after "
                f"the length and {HEADER_LIMIT_BYTES} is the limit (truncated, or not a safetensors file?)"
            )
        self._data_start = _LENGTH_BYTES + header_length
        header = parse_json_object(self._map[_LENGTH_BYTES : self._data_start], path, "the header")
        self.metadata: Mapping[str, str] = _parse_metadata(path, header.pop("__metadata__", {}))
        tensors = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
        _check_coverage(path, tensors, size - self._data_start)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def view(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only array; no copy, unless the file put a wide type at an odd address.

        uint8 for U8, F8_E4M3 and F8_E8M0, uint16 for BF16, the same type for the others. Raises KeyError.
        """
        info = self.tensors[name]
        dtype = VIEW_DTYPES[info.dtype]
        if info.num_bytes == 0:
            return np.zeros(info.shape, dtype)
        start = self._data_start + info.begin
        flat = np.frombuffer(self._map, dtype, info.num_bytes // dtype.itemsize, start)
        if start % dtype.itemsize:
            flat = flat.copy()
            flat.setflags(write=False)
        return flat.reshape(info.shape)

    def release_pages(self) -> None:
        """Let go of the file's pages in memory; views stay valid and read them anew."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _parse_metadata(path: Path, metadata: object) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedCheckpoint(f"{path}: __metadata__ in the header is not an object of strings")
    return MappingProxyType(metadata)


def _parse_entry(path: Path, name: str, entry: object) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise MalformedCheckpoint(f"{where}: expected dtype, shape and data_offsets; got {got}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in VIEW_DTYPES:
        raise MalformedCheckpoint(
            f"{where}: unknown dtype {dtype!r}; expected one of {', '.join(VIEW_DTYPES)}"
        )
    shape = _parse_shape(where, entry["shape"])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(value) for value in offsets):
        raise MalformedCheckpoint(f"{where}: data_offsets are {offsets!r:.100}; expected two sizes from 0 up")
    begin, end = offsets
    num_elements = 1
    for dimension in shape:
        num_elements *= dimension
    expected = num_elements * VIEW_DTYPES[dtype].itemsize
    if end - begin != expected:
        raise MalformedCheckpoint(
            f"{where}: data_offsets span {end - begin} bytes; {dtype} {list(shape)} takes {expected}"
        )
    return TensorInfo(path, name, dtype, shape, begin, end)


def _parse_shape(where: str, shape: object) -> tuple[int, ...]:
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(_is_count(dimension) and dimension <= _MAX_DIMENSION for dimension in shape)
    ):
        raise MalformedCheckpoint(
            f"{where}: shape is {shape!r:.100}; expected at most {_MAX_DIMENSIONS} sizes from 0 to 2^48"
        )
    num_elements = 1
    for dimension in shape:
        num_elements *= max(dimension, 1)
    if num_elements > _MAX_ELEMENTS:
        raise MalformedCheckpoint(f"{where}: shape {shape} overflows; expected at most 2^60 elements")
    return tuple(shape)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_coverage(path: Path, tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    """The tensors, in order of place, must lie end to end from 0 to the end of the file."""
    position = 0
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            fault = "overlaps the tensor before it" if info.begin < position else "leaves a gap before it"
            raise MalformedCheckpoint(f"{info}: {fault}: begins at {info.begin}, expected {position}")
        position = info.end
    if position != data_bytes:
        fault = "is truncated" if position > data_bytes else "has bytes that belong to no tensor"
        raise MalformedCheckpoint(
            f"{path}: {fault}: {data_bytes} bytes of data, the header describes {position}"
        )
