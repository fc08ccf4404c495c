"""Allowances per minute, requests at a time, and the headers that tell of them."""

from __future__ import annotations

import pytest

from service.errors import BadRequest, RequestRateLimited, TokenRateLimited
from service.keys.entry import KeyLimits
from service.keys.token_bucket import TokenBucket
from service.keys.usage import KeyUsage, format_duration
from tests.support.clock import Clock


def usage(clock: Clock, **limits: int) -> KeyUsage:
    made = KeyUsage("alice", clock)
    made.set_limits(KeyLimits(**limits))
    return made


def test_a_bucket_fills_evenly() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.take(60)
    assert (bucket.remaining, bucket.seconds_until(1), bucket.seconds_until_full) == (0, 1, 60)
    clock.now += 30
    assert (bucket.remaining, bucket.seconds_until(31), bucket.seconds_until_full) == (30, 1, 30)
    clock.now += 3600
    assert bucket.remaining == 60
    bucket.take(-5)
    assert bucket.remaining == 60
    bucket.take(90)
    assert (bucket.remaining, bucket.seconds_until(1)) == (0, 31)


def test_requests_per_minute() -> None:
    clock = Clock()
    alice = usage(clock, requests_per_minute=2)
    for _ in range(2):
        alice.check(1000)
        alice.begin(1000)
    with pytest.raises(RequestRateLimited, match="2 requests per minute") as caught:
        alice.check(1)
    assert caught.value.retry_after_seconds == pytest.approx(30)
    clock.now += 30
    alice.check(1)
    assert alice.num_requests_total == 2


def test_tokens_per_minute_are_settled_at_the_end() -> None:
    clock = Clock()
    alice = usage(clock, tokens_per_minute=600)
    alice.check(500)
    alice.begin(500)
    with pytest.raises(TokenRateLimited, match="100 left, 200 asked for") as caught:
        alice.check(200)
    assert caught.value.retry_after_seconds == pytest.approx(10)
    alice.adjust_tokens(-400)
    alice.check(200)
    with pytest.raises(BadRequest, match="601 tokens") as impossible:
        alice.check(601)
    assert impossible.value.param == "max_tokens"


def test_requests_at_a_time() -> None:
    alice = usage(Clock(), max_concurrent_requests=1)
    alice.begin(1)
    with pytest.raises(RequestRateLimited, match=r"at a time \(1\)"):
        alice.check(1)
    alice.end()
    alice.check(1)


def test_headers() -> None:
    clock = Clock()
    alice = usage(clock, requests_per_minute=10, tokens_per_minute=6000)
    alice.begin(1500)
    assert alice.headers() == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert usage(clock).headers() == {}


def test_new_limits_keep_what_was_used() -> None:
    alice = usage(Clock(), requests_per_minute=10)
    for _ in range(10):
        alice.begin(1)
    alice.set_limits(KeyLimits(requests_per_minute=12))
    assert alice.headers()["x-ratelimit-remaining-requests"] == "2"
    alice.set_limits(KeyLimits(requests_per_minute=12))
    assert alice.headers()["x-ratelimit-remaining-requests"] == "2"
    alice.set_limits(KeyLimits())
    alice.check(10**9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.25, "250ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3725.5, "1h2m5.5s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
