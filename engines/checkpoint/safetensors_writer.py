"""Writing a .safetensors file as a stream: the header first, then one tensor after another."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engines.checkpoint.durable_writes import sync_directory
from engines.checkpoint.safetensors_file import VIEW_DTYPES

_ALIGNMENT_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written; `dtype` in the format's own words, e.g. "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * VIEW_DTYPES[self.dtype].itemsize


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, str, tuple[int, ...], bytes | bytearray | memoryview]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors (name, dtype, shape, data) that are all at hand. See `stream_safetensors`."""
    entries = list(tensors)
    specs = [TensorSpec(name, dtype, shape) for name, dtype, shape, _ in entries]
    stream_safetensors(path, specs, (data for *_, data in entries), metadata)


def stream_safetensors(
    path: Path,
    specs: Sequence[TensorSpec],
    data: Iterable[bytes | bytearray | memoryview],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `specs` in their order, taking their little-endian, row-major bytes from `data` one at a time.

    Written beside `path`, synced and renamed: `path` is whole or absent. Put wide dtypes first, so that every
    tensor is aligned. Raises ValueError for a repeated name, an unknown dtype or bytes that do not fit
    the shape, OSError as the file system does; nothing is left behind then.
    """
    header = encode_header(specs, metadata or {})
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            _write_data(file, specs, data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def encode_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of `specs` in their order, padded to 8 bytes, without its length. ValueError."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        if spec.name in header or spec.name == "__metadata__":
            raise ValueError(f"tensor {spec.name!r} occurs twice or is a reserved name")
        if spec.dtype not in VIEW_DTYPES:
            raise ValueError(
                f"tensor {spec.name!r}: unknown dtype {spec.dtype!r}; expected {', '.join(VIEW_DTYPES)}"
            )
        end = position + spec.num_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % _ALIGNMENT_BYTES)


def _write_data(
    file: BinaryIO, specs: Sequence[TensorSpec], data: Iterable[bytes | bytearray | memoryview]
) -> None:
    for spec, chunk in zip(specs, data, strict=True):
        size = memoryview(chunk).nbytes
        if size != spec.num_bytes:
            raise ValueError(
                f"tensor {spec.name!r}: got {size} bytes; "
                f"{spec.dtype} {list(spec.shape)} takes {spec.num_bytes}"
            )
        file.write(chunk)
