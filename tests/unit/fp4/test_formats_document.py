"""The numbers in docs/checkpoint-formats.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from engines.fp4 import e2m1, e4m3, e8m0

PAGE = (Path(__file__).parents[3] / "docs/checkpoint-formats.md").read_text(encoding="utf-8")


def _row(name: str) -> list[str]:
    (line,) = re.findall(rf"^  {name} +(.+)$", PAGE, re.MULTILINE)
    return str(line).split()


def test_elements() -> None:
    codes = np.array([int(code) for code in _row("code")], np.uint8)
    assert codes.tolist() == list(range(16))
    stated = np.array([float(value) for value in _row("value")], np.float32)
    assert e2m1.decode(codes).tobytes() == stated.tobytes()


def test_rounding() -> None:
    pairs = re.findall(r"([\d.]+) to (\d+)", PAGE[PAGE.index("Rounding is") : PAGE.index("What is\nbeyond")])
    assert len(pairs) == 7
    values = np.array([float(value) for value, _ in pairs], np.float32)
    assert e2m1.decode(e2m1.encode(values)).tolist() == [float(rounded) for _, rounded in pairs]
    assert e2m1.decode(e2m1.encode(np.array([100.0], np.float32))).tolist() == [6.0]


def test_a_byte() -> None:
    low, high, byte = re.findall(r"codes (\d+) \([\d.]+\) and (\d+) \([-\d.]+\).*byte (0x[0-9a-f]{2})", PAGE)[
        0
    ]
    assert e2m1.pack(np.array([[int(low), int(high)]], np.uint8)).tolist() == [[int(byte, 16)]]


def test_scales() -> None:
    for code, value in re.findall(r"(\d{3}) is ([\d.]+)", re.findall(r"2\^\(byte - 127\) +(.+)", PAGE)[0]):
        assert e8m0.decode(np.array([int(code)], np.uint8)).tolist() == [float(value)]
    assert e4m3.decode(np.array([0x7E, 0x38], np.uint8)).tolist() == [448.0, 1.0]
    assert e4m3.has_nan(np.array([0x7F], np.uint8))
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        value = mantissa / 8 * 2**-6 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8)
        assert e4m3.decode(np.array([code], np.uint8)).tolist() == [value]
