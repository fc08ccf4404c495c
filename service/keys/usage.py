"""The books of one key: its limits as they stand, and what it has used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from service.errors import BadRequest, RequestRateLimited, TokenRateLimited
from service.keys.entry import KeyLimits
from service.keys.token_bucket import TokenBucket


class KeyUsage:
    """Used from one event loop: `check` and `begin` follow each other without an await in between."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._limits = KeyLimits()
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.num_running = 0
        self.num_requests_total = 0
        self.num_rejected_total = 0
        self.num_prompt_tokens_total = 0
        self.num_generated_tokens_total = 0

    def set_limits(self, limits: KeyLimits) -> None:
        """New limits; what has been used in the last minute stays used."""
        self._requests = self._bucket(self._requests, limits.requests_per_minute)
        self._tokens = self._bucket(self._tokens, limits.tokens_per_minute)
        self._limits = limits

    def check(self, num_tokens: int) -> None:
        """Raises RequestRateLimited, TokenRateLimited, or BadRequest for what could never be admitted."""
        self._check_requests()
        self._check_tokens(num_tokens)

    def count_refusal(self) -> None:
        """A request was not let in, for whatever reason."""
        self.num_rejected_total += 1

    def begin(self, num_tokens: int) -> None:
        """A request has come in; so many tokens are booked for it until `adjust_tokens` corrects that."""
        self.num_running += 1
        self.num_requests_total += 1
        if self._requests is not None:
            self._requests.take(1)
        self.adjust_tokens(num_tokens)

    def end(self) -> None:
        """It has gone."""
        self.num_running -= 1

    def adjust_tokens(self, num_tokens: int) -> None:
        """Book so many tokens more than before (fewer, if negative)."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def count_tokens(self, *, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Count what was used."""
        self.num_prompt_tokens_total += num_prompt_tokens
        self.num_generated_tokens_total += num_generated_tokens

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as they stand; none for a key without such limits."""
        headers: dict[str, str] = {}
        for unit, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{unit}"] = str(bucket.remaining)
                headers[f"x-ratelimit-reset-{unit}"] = format_duration(bucket.seconds_until_full)
        return headers

    def _check_requests(self) -> None:
        limit = self._limits.max_concurrent_requests
        if limit is not None and self.num_running >= limit:
            raise RequestRateLimited(
                f"The API key '{self.name}' has {self.num_running} requests running or waiting, "
                f"which is all it may have at a time ({limit}). Try again when one of them has ended.",
                retry_after_seconds=1.0,
            )
        if self._requests is not None and (seconds := self._requests.seconds_until(1)) > 0:
            raise RequestRateLimited(
                f"Rate limit reached for the API key '{self.name}': {self._requests.per_minute} requests per "
                f"minute. Try again in {format_duration(seconds)}.",
                retry_after_seconds=seconds,
            )

    def _check_tokens(self, num_tokens: int) -> None:
        bucket = self._tokens
        if bucket is None:
            return
        if num_tokens > bucket.per_minute:
            raise BadRequest(
                f"The request may need {num_tokens} tokens (prompt and answers), more than the API "
                f"key '{self.name}' may use in a minute ({bucket.per_minute}). Shorten it or ask for less.",
                param="max_tokens",
            )
        if (seconds := bucket.seconds_until(num_tokens)) > 0:
            raise TokenRateLimited(
                f"Rate limit reached for the API key '{self.name}': {bucket.per_minute} tokens per minute, "
                f"{bucket.remaining} left, {num_tokens} asked for. Try again in {format_duration(seconds)}.",
                retry_after_seconds=seconds,
            )

    def _bucket(self, before: TokenBucket | None, per_minute: int | None) -> TokenBucket | None:
        if per_minute is None:
            return None
        if before is not None and before.per_minute == per_minute:
            return before
        bucket = TokenBucket(per_minute, self._clock)
        if before is not None:
            bucket.take(before.per_minute - before.level)
        return bucket


def format_duration(seconds: float) -> str:
    """As OpenAI writes it: "250ms", "8.64s", "6m0s", "1h0m0s"; rounded up to milliseconds."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
