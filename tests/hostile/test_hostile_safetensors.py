"""Safetensors files made to do harm, or merely broken: refused with a clear message, nothing allocated."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.errors import MalformedCheckpoint
from tests.support.checkpoint_edits import raw_safetensors


def header(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def u8(begin: int, end: int, shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "empty file": (b"", "has 0 bytes"),
    "only a part of the length": (b"\x01\x00", "has 2 bytes"),
    "header longer than the file": (raw_safetensors(b"{}", length=3), "claims 3 bytes; the file has 2"),
    "header length of 2^64-1": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "header is no JSON": (raw_safetensors(b"hello"), "the header is not valid JSON"),
    "header is no UTF-8": (raw_safetensors(b'{"\xff": 1}'), "the header is not valid JSON"),
    "header is a list": (raw_safetensors(b"[]"), "JSON list; expected an object"),
    "header with NaN": (raw_safetensors(b'{"a": NaN}'), "NaN is not JSON"),
    "header nested 100000 deep": (raw_safetensors(b'{"a":' * 100_000), "nested too deeply"),
    "header with a number of 10000 digits": (
        raw_safetensors(b'{"a":' + b"9" * 10_000 + b"}"),
        "not valid JSON",
    ),
    "name twice": (raw_safetensors(b'{"a": 1, "a": 2}'), "'a' occurs twice"),
    "entry is a number": (raw_safetensors(header(a=1)), "tensor 'a': expected dtype, shape and data_offsets"),
    "entry lacks a shape": (raw_safetensors(header(a={"dtype": "U8"})), "got \\['dtype'\\]"),
    "unknown dtype": (raw_safetensors(header(a=u8(0, 0) | {"dtype": "F4"})), "unknown dtype 'F4'"),
    "dtype is a list": (raw_safetensors(header(a=u8(0, 0) | {"dtype": []})), "unknown dtype"),
    "negative size": (raw_safetensors(header(a=u8(0, 1, [-1]))), r"shape is \[-1\]"),
    "size is true": (raw_safetensors(header(a=u8(0, 1, [True])), b"x"), r"shape is \[True\]"),
    "size is 1.0": (raw_safetensors(header(a=u8(0, 1, [1.0])), b"x"), r"shape is \[1\.0\]"),
    "size beyond 2^48": (raw_safetensors(header(a=u8(0, 0, [0, 1 << 70]))), "from 0 to 2\\^48"),
    "product wraps around 2^64 to 0": (raw_safetensors(header(a=u8(0, 0, [1 << 32, 1 << 32]))), "overflows"),
    "overflow hidden by a zero": (raw_safetensors(header(a=u8(0, 0, [0, 1 << 47, 1 << 47]))), "overflows"),
    "nine dimensions": (raw_safetensors(header(a=u8(0, 1, [1] * 9)), b"x"), "at most 8 sizes"),
    "negative offset": (raw_safetensors(header(a=u8(-1, 0)), b""), "data_offsets are \\[-1, 0\\]"),
    "three offsets": (raw_safetensors(header(a=u8(0, 0) | {"data_offsets": [0, 0, 0]})), "data_offsets"),
    "end before begin": (raw_safetensors(header(a=u8(4, 2, [2]))), "span -2 bytes; U8 .2. takes 2"),
    "offsets and shape disagree": (raw_safetensors(header(a=u8(0, 4, [3])), b"abcd"), "span 4 bytes"),
    "beyond the end": (raw_safetensors(header(a=u8(0, 8)), b"abcd"), "is truncated: 4 bytes of data"),
    "overlap": (raw_safetensors(header(a=u8(0, 4), b=u8(2, 6)), b"abcdef"), "'b': overlaps"),
    "same bytes twice": (raw_safetensors(header(a=u8(0, 4), b=u8(0, 4)), b"abcd"), "overlaps"),
    "gap": (raw_safetensors(header(a=u8(0, 2), b=u8(4, 6)), b"abcdef"), "'b': leaves a gap"),
    "bytes at the end": (raw_safetensors(header(a=u8(0, 2)), b"abcd"), "belong to no tensor"),
    "metadata is a list": (raw_safetensors(b'{"__metadata__": []}'), "__metadata__"),
    "metadata of numbers": (raw_safetensors(b'{"__metadata__": {"a": 1}}'), "__metadata__"),
}


@pytest.mark.parametrize(("content", "message"), SAFETENSORS.values(), ids=list(SAFETENSORS))
def test_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MalformedCheckpoint, match=message) as raised:
        SafetensorsFile(path)
    assert str(path) in str(raised.value)


def test_a_huge_header_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    try:
        with pytest.raises(MalformedCheckpoint, match="claims 99000000"):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_header_above_the_limit_is_refused_even_when_the_file_is_that_long(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_100)  # sparse: takes no room
    with pytest.raises(MalformedCheckpoint, match="100000000 is the limit"):
        SafetensorsFile(path)
