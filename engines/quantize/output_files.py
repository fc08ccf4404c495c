"""The weight files of the checkpoint being made, all open, their tensors written by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.safetensors_assembly import SafetensorsAssembly
from engines.checkpoint.safetensors_writer import TensorSpec
from engines.quantize.layouts import METADATA


class OutputFiles:
    """A context manager; files are made at their full size on entry, or continued."""

    def __init__(self, directory: Path, files: Mapping[str, Sequence[TensorSpec]]) -> None:
        self._directory = directory
        self._specs = files
        self._opened: list[SafetensorsAssembly] = []
        self._file_of: dict[str, SafetensorsAssembly] = {}

    def __enter__(self) -> OutputFiles:
        try:
            for name, specs in self._specs.items():
                file = SafetensorsAssembly(self._directory / name, specs, METADATA)
                self._opened.append(file)
                self._file_of.update({spec.name: file for spec in specs})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, spec: TensorSpec, values: NDArray[Any]) -> None:
        """Put a tensor in its place; `values` holds the bytes as stored, in any shape."""
        self._file_of[spec.name].write(spec.name, np.ascontiguousarray(values).reshape(-1).data)

    def sync(self, specs: Sequence[TensorSpec]) -> None:
        """Return once the files of `specs` are on the disk."""
        for file in {self._file_of[spec.name] for spec in specs}:
            file.sync()

    def close(self) -> None:
        """Close all files; more than once does nothing."""
        for file in self._opened:
            file.close()
