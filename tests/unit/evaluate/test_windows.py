"""Sliding windows: which tokens are scored, with how much context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InvalidRequest
from engines.evaluate.windows import Window, Windowing, choose_windowing, windows


def scored_positions(num_tokens: int, windowing: Windowing) -> list[int]:
    return [p for w in windows(num_tokens, windowing) for p in range(w.first_scored, w.end)]


@given(st.integers(0, 200), st.integers(2, 60), st.data())
def test_overlapping_windows_score_every_token_once_with_context(
    num_tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    windowing = Windowing(window, stride)
    assert scored_positions(num_tokens, windowing) == list(range(1, num_tokens))
    for one in windows(num_tokens, windowing):
        assert one.end - one.begin <= window
        assert one.first_scored - one.begin >= min(one.first_scored, window - stride)


def test_windows_without_overlap_lose_their_first_tokens() -> None:
    assert scored_positions(10, Windowing(4, 4)) == [1, 2, 3, 5, 6, 7, 9]


def test_a_long_text() -> None:
    assert list(windows(10, Windowing(6, 2))) == [Window(0, 1, 6), Window(2, 6, 8), Window(4, 8, 10)]


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_text_with_nothing_to_predict(num_tokens: int) -> None:
    assert list(windows(num_tokens, Windowing(4, 2))) == []


def test_defaults() -> None:
    assert choose_windowing(512, None, None) == Windowing(512, 256)
    assert choose_windowing(1 << 17, None, None) == Windowing(2048, 1024)
    assert choose_windowing(512, 100, None) == Windowing(100, 50)
    assert choose_windowing(512, None, 1) == Windowing(512, 1)


@pytest.mark.parametrize(
    ("window", "stride", "param"),
    [(1, None, "window"), (513, None, "window"), (64, 0, "stride"), (64, 65, "stride")],
)
def test_impossible_windows(window: int, stride: int | None, param: str) -> None:
    with pytest.raises(InvalidRequest, match=param) as caught:
        choose_windowing(512, window, stride)
    assert caught.value.param == param
