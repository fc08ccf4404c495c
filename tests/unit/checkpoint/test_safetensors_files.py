"""Our safetensors reader and writer against the `safetensors` library."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from engines.checkpoint.safetensors_file import VIEW_DTYPES, SafetensorsFile
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors, write_safetensors


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        "f32": random.normal(size=(3, 5)).astype(np.float32),
        "f16": random.normal(size=(4,)).astype(np.float16),
        "u8": random.integers(0, 256, (2, 3, 4), dtype=np.uint8),
        "i64": random.integers(-9, 9, (7,)),
        "bool": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert dict(file.metadata) == {"format": "pt"}
    assert set(file.tensors) == set(tensors)
    for name, expected in tensors.items():
        view = file.view(name)
        assert view.dtype == expected.dtype
        assert view.shape == expected.shape
        np.testing.assert_array_equal(view, expected)


def test_views_are_read_only_and_share_the_map(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", [("x", "U8", (4,), b"abcd")])
    file = SafetensorsFile(tmp_path / "a.safetensors")
    view = file.view("x")
    assert not view.flags.writeable
    assert np.shares_memory(view, file.view("x"))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_small_floats_are_raw_bits(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], np.float32)
    bf16 = values.astype(ml_dtypes.bfloat16)
    fp8 = values.astype(ml_dtypes.float8_e4m3fn)
    entries = [("a", "BF16", (2,), bf16.tobytes()), ("b", "F8_E4M3", (2,), fp8.tobytes())]
    write_safetensors(tmp_path / "a.safetensors", entries)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(file.view("a"), bf16.view(np.uint16))
    np.testing.assert_array_equal(file.view("b"), fp8.view(np.uint8))


def test_a_wide_tensor_at_an_odd_address_is_still_aligned_in_memory(tmp_path: Path) -> None:
    data = np.array([1.25, -7.0], "<f4")
    entries = [("odd", "U8", (3,), b"xyz"), ("wide", "F32", (2,), data.tobytes())]
    write_safetensors(tmp_path / "a.safetensors", entries)
    view = SafetensorsFile(tmp_path / "a.safetensors").view("wide")
    assert view.flags.aligned
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, data)


def test_the_library_reads_what_we_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wide, narrow = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(5, dtype=np.uint8)
    specs = [
        TensorSpec("wide", "F32", (2, 3)),
        TensorSpec("narrow", "U8", (5,)),
        TensorSpec("none", "I64", (0,)),
    ]
    stream_safetensors(path, specs, iter([wide.tobytes(), memoryview(narrow), b""]), {"made": "here"})
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"made": "here"}
        np.testing.assert_array_equal(file.get_tensor("wide"), wide)
        np.testing.assert_array_equal(file.get_tensor("narrow"), narrow)
        assert file.get_tensor("none").shape == (0,)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("dtype", list(VIEW_DTYPES))
def test_every_dtype_has_the_item_size_of_the_library(tmp_path: Path, dtype: str) -> None:
    size = VIEW_DTYPES[dtype].itemsize
    write_safetensors(tmp_path / "a.safetensors", [("x", dtype, (2,), bytes(2 * size))])
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.get_slice("x").get_shape() == [2]
    assert SafetensorsFile(tmp_path / "a.safetensors").view("x").nbytes == 2 * size


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("x", "F32", (2,), b"1234567")], "got 7 bytes; F32 .2. takes 8"),
        ([("x", "F99", (2,), b"")], "unknown dtype 'F99'"),
        ([("x", "U8", (1,), b"1"), ("x", "U8", (1,), b"2")], "'x' occurs twice"),
        ([("__metadata__", "U8", (1,), b"1")], "reserved"),
    ],
)
def test_a_refused_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, entries, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        write_safetensors(path, entries)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def source():
        yield b"1"
        raise RuntimeError("disk on fire")

    specs = [TensorSpec("a", "U8", (1,)), TensorSpec("b", "U8", (1,))]
    with pytest.raises(RuntimeError, match="disk on fire"):
        stream_safetensors(tmp_path / "a.safetensors", specs, source())
    assert os.listdir(tmp_path) == []
