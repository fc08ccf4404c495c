"""Files whose tensors arrive in any order, over several openings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.safetensors_assembly import SafetensorsAssembly
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors

SPECS = [TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "U8", (5,)), TensorSpec("c", "F32", ())]
DATA = {"a": np.arange(6, dtype="<f4").tobytes(), "b": b"12345", "c": np.float32(7).tobytes()}


def test_any_order_over_two_openings_gives_the_bytes_of_the_stream_writer(tmp_path: Path) -> None:
    stream_safetensors(tmp_path / "expected", SPECS, [DATA["a"], DATA["b"], DATA["c"]], {"format": "pt"})
    for names in (["c"], ["a", "b"]):
        assembly = SafetensorsAssembly(tmp_path / "made", SPECS, {"format": "pt"})
        for name in names:
            assembly.write(name, DATA[name])
        assembly.sync()
        assembly.close()
        assembly.close()
    assert (tmp_path / "made").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_file_of_another_length_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"\x08")  # what a kill before the header leaves
    assembly = SafetensorsAssembly(tmp_path / "made", SPECS)
    for name, data in DATA.items():
        assembly.write(name, data)
    assembly.close()
    stream_safetensors(tmp_path / "expected", SPECS, DATA.values())
    assert (tmp_path / "made").read_bytes() == (tmp_path / "expected").read_bytes()


def test_wrong_names_sizes_and_files_are_refused(tmp_path: Path) -> None:
    assembly = SafetensorsAssembly(tmp_path / "made", SPECS)
    with pytest.raises(KeyError):
        assembly.write("d", b"")
    with pytest.raises(ValueError, match="got 4 bytes; it takes 5"):
        assembly.write("b", b"1234")
    assembly.close()
    renamed = [SPECS[0], TensorSpec("x", "U8", (5,)), SPECS[2]]
    with pytest.raises(ValueError, match="another file"):
        SafetensorsAssembly(tmp_path / "made", renamed)


def test_a_full_disk_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        SafetensorsAssembly(tmp_path / "made", SPECS)
