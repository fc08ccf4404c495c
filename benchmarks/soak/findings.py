"""What a soak has to show, as checks that name their figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.soak.exchange import Exchange

_REFUSALS = (429, 503)
_LARGEST_HEALTH_SECONDS = 0.05
_LARGEST_GROWTH = 1.05
_LEAST_GOODPUT = 0.9


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and by which figures it does or does not."""

    name: str
    holds: bool
    figures: str


@dataclass(frozen=True, slots=True)
class Observed:
    """One phase: its exchanges, its length, and what was seen of the process meanwhile."""

    exchanges: Sequence[Exchange]
    seconds: float
    resident_bytes: Sequence[int]

    @property
    def goodput(self) -> float:
        """Tokens a second of whole answers that somebody was still waiting for."""
        tokens = sum(e.num_tokens for e in self.exchanges if e.status == 200 and e.is_whole)
        return tokens / self.seconds


def check_all(
    at_capacity: Observed, overloaded: Observed, health: Sequence[tuple[float, int]], left: dict[str, float]
) -> list[Check]:
    """The issue's list: goodput, refusals, errors, memory, leftovers, health."""
    return [
        _goodput(at_capacity, overloaded),
        _retry_after(overloaded),
        _no_server_errors(overloaded),
        _all_answered(at_capacity, overloaded),
        _refused_for_their_own_fault(overloaded),
        _memory(overloaded),
        Check("nothing is left running", not any(left.values()), str(left)),
        _health(health),
    ]


def _goodput(at_capacity: Observed, overloaded: Observed) -> Check:
    ratio = overloaded.goodput / at_capacity.goodput
    figures = f"{overloaded.goodput:.1f} of {at_capacity.goodput:.1f} tokens/s: {ratio:.1%}"
    return Check("goodput under overload is that at capacity, within 10 %", ratio >= _LEAST_GOODPUT, figures)


def _retry_after(observed: Observed) -> Check:
    refused = [e for e in observed.exchanges if e.status in _REFUSALS]
    without = [e for e in refused if not _is_positive(e.headers.get("retry-after"))]
    waits = sorted(float(e.headers["retry-after"]) for e in refused if e not in without)
    figures = f"{len(refused)} refusals, {len(without)} without" + (
        f"; {waits[0]:g} to {waits[-1]:g} s" if waits else ""
    )
    return Check("every refusal has Retry-After", bool(refused) and not without, figures)


def _is_positive(value: str | None) -> bool:
    return value is not None and value.isdecimal() and int(value) > 0


def _no_server_errors(observed: Observed) -> Check:
    statuses = Counter(e.status for e in observed.exchanges if e.status is not None)
    errors = {s: count for s, count in statuses.items() if s >= 500 and s != 503}
    return Check("no 5xx but 503", not errors, str(dict(sorted(statuses.items()))))


def _all_answered(*phases: Observed) -> Check:
    exchanges = [e for phase in phases for e in phase.exchanges if not e.was_cancelled]
    unanswered = [e for e in exchanges if e.status is None or not e.is_whole]
    examples = "; ".join(f"{e.kind}: {e.problem or e.status}" for e in unanswered[:3])
    figures = f"{len(unanswered)} of {len(exchanges)} without a whole answer {examples}"
    return Check("every request is answered", not unanswered, figures)


def _refused_for_their_own_fault(observed: Observed) -> Check:
    """What is wrong with a request is said however full the server is, or else that it is full."""
    expected = {"no such model": 404, "bad field": 400, "too long": 400}
    wrong = Counter(
        (e.kind, e.status)
        for e in observed.exchanges
        if e.kind in expected and e.status not in (expected[e.kind], *_REFUSALS)
    )
    return Check("bad requests are told so", not wrong, str(dict(wrong)))


def _memory(observed: Observed) -> Check:
    third = len(observed.resident_bytes) // 3
    early = statistics.median(observed.resident_bytes[third : 2 * third])
    late = statistics.median(observed.resident_bytes[2 * third :])
    figures = f"{early / 1e6:.1f} MB in the second third, {late / 1e6:.1f} MB in the last"
    return Check("memory is flat after warm-up", late <= _LARGEST_GROWTH * early, figures)


def _health(health: Sequence[tuple[float, int]]) -> Check:
    slow = [seconds for seconds, _ in health if seconds > _LARGEST_HEALTH_SECONDS]
    failed = [status for _, status in health if status != 200]
    ordered = sorted(seconds for seconds, _ in health)
    figures = (
        f"{len(health)} probes, median {ordered[len(ordered) // 2] * 1e3:.1f} ms, slowest "
        f"{ordered[-1] * 1e3:.1f} ms, {len(slow)} over 50 ms, {len(failed)} not 200"
    )
    return Check("health answers within 50 ms throughout", not slow and not failed, figures)
