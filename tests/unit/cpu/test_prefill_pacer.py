"""Mixed steps stay within their stretch of a decode step, on machines of every kind."""

from __future__ import annotations

import pytest

from engines.cpu.prefill_pacer import SMALLEST_CHUNK, PrefillPacer


@pytest.mark.parametrize("token_seconds", [0.0001, 0.001, 0.004])
@pytest.mark.parametrize("decode_seconds", [0.04, 0.4])
def test_a_mixed_step_takes_as_long_as_it_may(token_seconds: float, decode_seconds: float) -> None:
    pacer = PrefillPacer(2.5)
    pacer.record(1, 0, decode_seconds)
    pacer.record(0, 512, 512 * token_seconds)
    for _ in range(30):
        chunk = pacer.max_prefill_tokens(1)
        seconds = decode_seconds + chunk * token_seconds
        assert seconds <= 2.5 * decode_seconds or chunk == SMALLEST_CHUNK
        assert seconds > 2.2 * decode_seconds
        pacer.record(1, chunk, seconds)


def test_small_chunks_that_cost_more_a_token_are_learnt() -> None:
    pacer = PrefillPacer(2.0)
    pacer.record(4, 0, 0.1)
    pacer.record(0, 512, 0.512)
    chunk = pacer.max_prefill_tokens(4)
    assert chunk == pytest.approx(100, abs=1)
    for _ in range(50):
        chunk = pacer.max_prefill_tokens(4)
        pacer.record(4, chunk, 0.1 + 0.002 * chunk)
    assert chunk == pytest.approx(50, abs=1)


def test_before_anything_is_timed_the_chunk_is_small() -> None:
    pacer = PrefillPacer(2.5)
    assert pacer.max_prefill_tokens(3) == SMALLEST_CHUNK
    pacer.record(0, 512, 1.0)
    assert pacer.max_prefill_tokens(3) == SMALLEST_CHUNK
    pacer.record(2, 0, 1.0)
    assert pacer.max_prefill_tokens(3) == int(1.5 * 1.0 / (1.0 / 512))


def test_decode_steps_are_told_apart_by_their_number_of_sequences() -> None:
    pacer = PrefillPacer(2.0)
    pacer.record(0, 1000, 1.0)
    pacer.record(1, 0, 0.05)
    pacer.record(16, 0, 0.3)
    assert pacer.max_prefill_tokens(2) == pytest.approx(50, abs=1)
    assert pacer.max_prefill_tokens(12) == pytest.approx(300, abs=1)


def test_nothing_may_be_shorter_than_a_decode() -> None:
    with pytest.raises(ValueError, match=r"0\.5"):
        PrefillPacer(0.5)
