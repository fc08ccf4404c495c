"""Systems measured in turn, round after round, so that the machine's drift hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from engines.bench.peers.system import Limits, Measurement, PeerUnavailable, System
from engines.bench.peers.worker import Loaded, Worker, start_worker
from engines.bench.phase import OnProgress, Workload, median
from engines.host_memory import available_memory_bytes

_LOADING_FACTOR = 2.2  # of a model's files, while a system repacks them
_LOADING_BYTES = 2 << 30  # and what any of them takes besides
_RESERVE_BYTES = 6 << 30  # must stay available for a worker to be kept between its turns
_WARM_UP_TOKENS = 4

StartWorker = Callable[[System, Limits], Worker]


@dataclass(slots=True)
class SystemResult:
    """What a system did: tokens a second of each round by measurement, or `skipped`, the reason why not."""

    system: System
    loaded: Loaded | None = None
    runs: dict[str, list[float]] = field(default_factory=dict)
    peak_resident_bytes: int | None = None
    skipped: str | None = None

    def rates(self) -> dict[str, float]:
        """Medians over the rounds; empty for a system that was skipped."""
        return {} if self.skipped else {name: median(runs) for name, runs in self.runs.items()}


def measurements(workload: Workload) -> tuple[Measurement, ...]:
    """Prefill, then decode with each number of streams."""
    prefill = Measurement(f"prefill {workload.num_prefill_tokens}", 1, workload.num_prefill_tokens, 0)
    decodes = (
        Measurement(
            f"decode, {size} stream{'s' if size > 1 else ''}",
            size,
            workload.num_prompt_tokens,
            workload.num_decode_tokens,
        )
        for size in workload.concurrencies
    )
    return (prefill, *decodes)


class Comparison:
    """Runs rounds over `systems` and fills in what they did; one that fails is left out from then on."""

    def __init__(
        self,
        systems: Sequence[SystemResult],
        limits: Limits,
        workload: Workload,
        on_progress: OnProgress,
        start: StartWorker = start_worker,
        *,
        time_limit_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No round begins that would end beyond the time limit if it took as long as the one before."""
        self._results = list(systems)
        self._limits = limits
        self._workload = workload
        self._on_progress = on_progress
        self._start = start
        self._time_limit_seconds = time_limit_seconds
        self._clock = clock
        self._workers: dict[str, Worker] = {}

    def run(self) -> list[SystemResult]:
        """All rounds, or as many as the time allows; each begins with another system."""
        num_rounds = self._workload.num_repeats
        started = before = self._clock()
        try:
            for index in range(num_rounds):
                now = self._clock()
                if now - started + (now - before) > self._time_limit_seconds:
                    self._on_progress(f"no time for round {index + 1} of {num_rounds}")
                    break
                before = now
                label = f"round {index + 1} of {num_rounds}"
                first = index * len(self._results) // num_rounds
                for result in self._results[first:] + self._results[:first]:
                    if result.skipped is None:
                        self._take_turn(result, label)
        finally:
            for name in list(self._workers):
                self._close(name)
        return self._results

    def _take_turn(self, result: SystemResult, label: str) -> None:
        name = result.system.name
        try:
            worker = self._ready_worker(result)
            for each in measurements(self._workload):
                self._on_progress(f"{name}: {each.name}, {label}")
                result.runs.setdefault(each.name, []).append(worker.measure(each))
            result.peak_resident_bytes = worker.peak_resident_bytes()
            worker.hold()
            if available_memory_bytes() < _RESERVE_BYTES:
                self._close(name)
        except PeerUnavailable as error:
            result.skipped = str(error)
            self._close(name)

    def _ready_worker(self, result: SystemResult) -> Worker:
        """The system's worker, warmed up and going."""
        system = result.system
        if system.name in self._workers:
            worker = self._workers[system.name]
            worker.go_on()
            return worker
        self._make_room(system)
        self._on_progress(f"{system.name}: loading")
        worker = self._workers[system.name] = self._start(system, self._limits)
        result.loaded = worker.wait_until_loaded()
        self._on_progress(f"{system.name}: warm-up")
        for each in measurements(self._workload):
            worker.warm_up(replace(each, num_tokens=min(each.num_tokens, _WARM_UP_TOKENS)))
        return worker

    def _make_room(self, system: System) -> None:
        needed = int(system.model_bytes * _LOADING_FACTOR) + _LOADING_BYTES
        if available_memory_bytes() < needed:
            for name in list(self._workers):
                self._close(name)
        available = available_memory_bytes()
        if available < needed:
            raise PeerUnavailable(
                f"needs about {needed / 1e9:.1f} GB while it loads, {available / 1e9:.1f} GB are available"
            )

    def _close(self, name: str) -> None:
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()
