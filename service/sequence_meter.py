"""One sequence's figures, for the metrics and for its request's account."""

from __future__ import annotations

import time

from service.generation import TextOutput
from service.metrics import ServiceMetrics
from service.request_account import RequestAccount, first_output_cost


class SequenceMeter:
    """`take` is called for every output, so it does next to nothing for most of them."""

    def __init__(self, metrics: ServiceMetrics, account: RequestAccount, index: int) -> None:
        self._metrics = metrics
        self._account = account
        self._cost = account.sequence(index)
        self._gaps = metrics.inter_token_seconds
        self._admitted: float | None = None
        self._first: float | None = None
        self._previous = 0.0
        self._num_first_tokens = 0

    def admitted(self) -> None:
        """The sequence's turn has come: it goes to the engine."""
        self._admitted = time.perf_counter()

    @property
    def num_later_tokens(self) -> int:
        """Tokens taken after those that came first."""
        return self._cost.num_generated_tokens - self._num_first_tokens

    def take(self, output: TextOutput) -> bool:
        """Count an output that is not the last one; whether it brought the first token."""
        num_tokens = output.num_new_tokens
        if not num_tokens:
            return False
        now = time.perf_counter()
        is_first = self._first is None
        if is_first:
            self._num_first_tokens = num_tokens
            self._take_first(output, now)
        else:
            self._gaps.observe((now - self._previous) / num_tokens, num_tokens)
        self._previous = now
        self._cost.num_generated_tokens += num_tokens
        return is_first

    def finish(self, output: TextOutput, reason: str) -> None:
        """Count the last output. `reason` is the label under which the end is counted."""
        self.take(output)
        cost, metrics, now = self._cost, self._metrics, time.perf_counter()
        cost.finish_reason = output.finish_reason
        if output.timing is not None:
            cost.num_preemptions = output.timing.num_preemptions
        if self._first is not None:
            timing = output.timing
            # A stop string ends a sequence without the engine's last output.
            cost.decode_seconds = now - self._first if timing is None else timing.decode_seconds
            metrics.decode_seconds.observe(cost.decode_seconds)
        metrics.request_seconds.observe(now - self._account.arrived)
        metrics.generated_tokens.observe(cost.num_generated_tokens)
        metrics.finished.labels(reason).inc()

    def _take_first(self, output: TextOutput, now: float) -> None:
        self._first = now
        account, cost, metrics = self._account, self._cost, self._metrics
        admitted = cost.began if self._admitted is None else self._admitted
        first_output_cost(cost, output.timing, waited=admitted - cost.began, in_engine=now - admitted)
        metrics.queue_seconds.observe(cost.queue_seconds or 0.0)
        metrics.prefill_seconds.observe(cost.prefill_seconds or 0.0)
        metrics.time_to_first_token_seconds.observe(now - account.arrived)
        if account.time_to_first_token_seconds is None:
            account.time_to_first_token_seconds = now - account.arrived
