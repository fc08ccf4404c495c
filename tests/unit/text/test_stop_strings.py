"""Stop strings against a plain definition, over every division of the text."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.stop_strings import StopResult, StopStringMatcher


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: grow the text by characters; stop at the first end that a stop string completes."""
    for end in range(len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            longest = max(completed, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def run(chunks: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stops, include)
    text = ""
    for chunk in chunks:
        result = matcher.push(chunk)
        text += result.text
        if result.matched is not None:
            assert matcher.flush() == ""
            return text, result.matched
    return text + matcher.flush(), None


def divisions(text: str) -> list[list[str]]:
    places = range(1, len(text))
    return [
        [text[begin:end] for begin, end in zip((0, *cuts), (*cuts, len(text)), strict=True)]
        for count in range(len(text))
        for cuts in combinations(places, count)
    ]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("hello STOP x", ["STOP"]),
        ("ab\n\ncd\n\ne", ["\n\n"]),
        ("aabaabaac", ["aabaac"]),
        ("aabaaabaaac", ["aabaaac"]),
        ("xabcdy", ["abcd", "bc"]),
        ("xabcdy", ["bcd", "abcd"]),
        ("xabcy", ["ab", "abc"]),
        ("end ST", ["STOP", "TOP"]),
        ("aaaaaab", ["aab", "ab"]),
        ("no stop", []),
    ],
)
def test_every_division_gives_the_same(text: str, stops: list[str], include: bool) -> None:
    expected = cut(text, stops, include)
    for chunks in divisions(text):
        assert run(chunks, stops, include) == expected


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4),
    sizes=st.lists(st.integers(0, 7), max_size=30),
    include=st.booleans(),
)
def test_random_divisions(text: str, stops: list[str], sizes: list[int], include: bool) -> None:
    chunks, rest = [], text
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    assert run([*chunks, rest], stops, include) == cut(text, stops, include)


@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=2, max_size=6), max_size=3))
def test_only_the_possible_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopStringMatcher(stops, False)
    given_out = ""
    for index, character in enumerate(text):
        result = matcher.push(character)
        given_out += result.text
        if result.matched is not None:
            return
        so_far = text[: index + 1]
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))} | {""}
        held = max((beginning for beginning in beginnings if so_far.endswith(beginning)), key=len)
        assert given_out + held == so_far


def test_text_before_and_with_the_match() -> None:
    assert StopStringMatcher(["END"]).push("the END of it") == StopResult("the ", "END")
    assert StopStringMatcher(["END"], True).push("the END of it") == StopResult("the END", "END")


def test_the_string_completed_first_wins() -> None:
    assert StopStringMatcher(["abcd", "bc"]).push("xabcd") == StopResult("xa", "bc")
    assert StopStringMatcher(["bc", "abc"]).push("xabc") == StopResult("x", "abc")


def test_a_long_stop_string_costs_no_more_per_character() -> None:
    """Counted, not timed: a few looks at the stop string for each character of text."""

    class CountingString(str):
        __slots__ = ()
        looks = 0

        def __getitem__(self, index):
            type(self).looks += 1
            return str.__getitem__(self, index)

    stop = CountingString("a" * 2000 + "b")
    matcher = StopStringMatcher([stop])
    CountingString.looks = 0
    for _ in range(10_000):
        matcher.push("a")
    matcher.push("c" * 10)
    assert 10_000 < CountingString.looks <= 6 * 10_010


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopStringMatcher(["a", ""])


def test_text_after_a_match_is_refused() -> None:
    matcher = StopStringMatcher(["a"])
    matcher.push("a")
    with pytest.raises(RuntimeError, match="after a stop string"):
        matcher.push("b")
