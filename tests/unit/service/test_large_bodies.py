"""The patient parser says what the quick one says, and lets others run meanwhile."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import large_bodies
from service.large_bodies import parse_patiently

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@given(VALUES, st.sampled_from([None, 1]))
def test_it_is_json(value: object, indent: int | None) -> None:
    many = large_bodies._MANY_VALUES
    large_bodies._MANY_VALUES = 0
    try:
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            body = json.dumps(value, indent=indent, ensure_ascii=False).encode(encoding, "surrogatepass")
            assert parse_patiently(body) == value
    finally:
        large_bodies._MANY_VALUES = many


@pytest.mark.parametrize("body", [b"", b"[1,", b"[1 2]", b'{"a"}', b"\xff", b"[" * 200_000, b"9" * 5000])
def test_mistakes_are_those_of_the_quick_parser(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)) as quick:
        json.loads(body)
    monkeypatch.setattr(large_bodies, "_MANY_VALUES", 0)
    with pytest.raises(quick.type) as patient:
        parse_patiently(body)
    if isinstance(quick.value, json.JSONDecodeError) and isinstance(patient.value, json.JSONDecodeError):
        assert (patient.value.msg, patient.value.pos) == (quick.value.msg, quick.value.pos)


def test_other_threads_run_while_many_values_are_parsed() -> None:
    body = b"[" + b"1," * 400_000 + b"1]"
    turns = 0
    done = threading.Event()

    def parse() -> None:
        parse_patiently(body)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        thread = threading.Thread(target=parse)
        thread.start()
        while not done.is_set():
            turns += 1
            done.wait(0.0001)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    # The parser in C would let this thread in before it and after it.
    assert turns > 10
