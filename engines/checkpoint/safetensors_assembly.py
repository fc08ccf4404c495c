"""Writing a .safetensors file whose tensors become known in any order, over several runs of the program."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.checkpoint.durable_writes import write_at
from engines.checkpoint.safetensors_writer import TensorSpec, encode_header

_LENGTH_BYTES = 8


class SafetensorsAssembly:
    """A file of its final size from the start; `write` puts a tensor in its place.

    The bytes depend on the specs and the data only, not on the order of the writes nor on how often the file
    was opened. The file holds zeros where nothing was written yet: keep it where nobody takes it for whole.
    """

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Open `path`, or make it and reserve its space. OSError as the file system does (a full disk, say).

        Raises ValueError for a repeated name, an unknown dtype, or an existing file of another header.
        """
        self.path = path
        header = encode_header(specs, metadata or {})
        start = len(header).to_bytes(_LENGTH_BYTES, "little") + header
        self._places: dict[str, tuple[int, int]] = {}
        position = len(start)
        for spec in specs:
            self._places[spec.name] = (position, spec.num_bytes)
            position += spec.num_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._prepare(start, position)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _prepare(self, start: bytes, size: int) -> None:
        present = os.fstat(self._descriptor).st_size
        if present == size:
            if os.pread(self._descriptor, len(start), 0) != start:
                raise ValueError(f"{self.path}: is another file than the one to be continued")
            return
        os.ftruncate(self._descriptor, 0)
        write_at(self._descriptor, start, 0)
        os.posix_fallocate(self._descriptor, 0, size)  # last: a file of its final size has its header

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Put the little-endian, row-major bytes of tensor `name` in place.

        Raises KeyError for an unknown name, ValueError for another number of bytes than its shape takes.
        """
        position, size = self._places[name]
        view = memoryview(data).cast("B")
        if view.nbytes != size:
            raise ValueError(f"{self.path}: tensor {name!r}: got {view.nbytes} bytes; it takes {size}")
        write_at(self._descriptor, view, position)

    def sync(self) -> None:
        """Return once everything written so far is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; more than once does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
