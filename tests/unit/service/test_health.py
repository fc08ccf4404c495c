"""What the probes are told in each state of the process."""

from __future__ import annotations

from typing import Any

import pytest

from engines.base import LoadProgress
from service.health import Health
from service.lifecycle import Lifecycle
from service.loop_heartbeat import LoopHeartbeat
from service.startup import Startup


class Process:
    """The parts of a process that the probes look at, and its clock."""

    def __init__(self) -> None:
        self.now = 50.0
        self.lifecycle = Lifecycle()
        self.startup = Startup(clock=lambda: self.now)
        self.heartbeat = LoopHeartbeat(clock=lambda: self.now)
        self.health = Health(self.lifecycle, self.startup, self.heartbeat, liveness_seconds=30)

    def statuses(self) -> tuple[int, int, int]:
        """Of live, ready, startup."""
        health = self.health
        return health.live().status, health.ready().status, health.startup().status


class Loading:
    """An engine as far as its loading is concerned."""

    def __init__(self, progress: LoadProgress | None) -> None:
        self._progress = progress

    def load_progress(self) -> LoadProgress | None:
        return self._progress


@pytest.fixture
def process() -> Process:
    return Process()


def begin(process: Process, progress: LoadProgress | None) -> dict[str, Any]:
    engine: Any = Loading(progress)
    process.startup.begin("starting the engine", engine)
    process.now += 20
    return process.health.startup().body


def test_from_the_cradle_to_the_grave(process: Process) -> None:
    assert process.statuses() == (200, 503, 503)
    process.startup.end()
    process.lifecycle.mark_ready()
    assert process.statuses() == (200, 200, 200)
    process.lifecycle.announce_shutdown()
    assert process.statuses() == (200, 503, 200)
    process.lifecycle.ensure_ready()
    process.lifecycle.begin_drain()
    assert process.statuses() == (200, 503, 200)


def test_progress_of_the_engine_with_what_is_left(process: Process) -> None:
    body = begin(process, LoadProgress("repacking weights", 8.0, 0.25, 25, 100))
    assert body == {
        "status": "loading",
        "phase": "repacking weights",
        "fraction": 0.25,
        "done_bytes": 25,
        "total_bytes": 100,
        "eta_seconds": 24.0,
        "elapsed_seconds": 20.0,
    }


def test_an_engine_that_cannot_tell(process: Process) -> None:
    body = begin(process, None)
    assert body["phase"] == "starting the engine"
    assert body["fraction"] is body["eta_seconds"] is None
    assert begin(process, LoadProgress("x", 1.0, 0.0))["eta_seconds"] is None
    assert begin(process, LoadProgress("x", 1.0, 1.0))["eta_seconds"] == 0.0


def test_a_failed_start_says_why(process: Process) -> None:
    process.lifecycle.mark_failed("the files are gone")
    answer = process.health.startup()
    assert answer.status == 503
    assert answer.body["reason"] == "the files are gone"


def test_a_death_later_is_no_failed_start(process: Process) -> None:
    process.lifecycle.mark_ready()
    process.lifecycle.mark_failed("a cosmic ray")
    assert process.statuses() == (200, 503, 200)


def test_elapsed_stands_still_once_it_is_over(process: Process) -> None:
    process.now += 3
    process.startup.end()
    process.lifecycle.mark_ready()
    process.now += 100
    assert process.health.startup().body["elapsed_seconds"] == 3.0


async def test_a_blocked_loop_loses_readiness_then_liveness(process: Process) -> None:
    process.lifecycle.mark_ready()
    beating = process.heartbeat.run(lambda: None)
    beating.send(None)
    for seconds, expected in ((9.0, (200, 200)), (2.0, (200, 503)), (20.0, (503, 503))):
        process.now += seconds
        assert process.statuses()[:2] == expected
    assert "blocked for 31.0 s" in process.health.live().body["reason"]
    beating.close()
