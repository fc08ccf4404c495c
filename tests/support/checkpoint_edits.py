"""Making a broken copy of a good checkpoint: edit its JSON, its tensors or the bytes of its header."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.checkpoint.safetensors_writer import write_safetensors

Tensors = dict[str, tuple[str, np.ndarray]]


def copy_checkpoint(source: Path, target: Path) -> Path:
    """The three files that matter, copied."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    return target


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def edit_tensors(directory: Path, edit: Callable[[Tensors], None]) -> None:
    """Rewrite model.safetensors with the tensors (dtype, raw array) as `edit` leaves them."""
    path = directory / "model.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: (info.dtype, file.view(name).copy()) for name, info in file.tensors.items()}
    edit(tensors)
    write_safetensors(
        path, [(name, dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()]
    )


def raw_safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with any header, sound or not; `length` is what it claims to be long."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data
