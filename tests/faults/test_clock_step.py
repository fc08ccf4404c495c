"""The wall clock jumps by a day, forth and back, while requests with time limits run: nothing happens."""

from __future__ import annotations

from pathlib import Path

from tests.support.drill import MODEL, Load, drill

BODY: dict[str, object] = {
    "model": MODEL,
    "prompt": "x",
    "ignore_eos": True,
    "max_tokens": 40,
    "stream": True,
    "timeout": 60,
}
TIME_LIMITS = ("--request-timeout", "60", "--queue-timeout", "60", "--readiness-stall", "20")
DAY = 86_400

# libfaketime would reach further, but Python's time.sleep fails under it (clock_nanosleep, version 0.9.10).
JUMPING_MAIN = """
import pathlib, time
real_time, offset = time.time, pathlib.Path({path!r})
time.time = lambda: real_time() + float(offset.read_text() or 0)
from service.cli import main
main()
"""


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("0")
    options = ("--echo-faults", "step_seconds=0.002", "--max-num-seqs", "4", *TIME_LIMITS)
    with drill(*options, main=JUMPING_MAIN.format(path=str(offset))) as process:
        process.wait_until_ready()
        with Load(process.url, 8, "/v1/completions", BODY) as load:
            for seconds in (0, DAY, -DAY, 0):
                offset.write_text(str(seconds))
                load.wait_for_more(16)
                assert process.health("ready").status_code == 200
                assert process.health("live").status_code == 200
        # The log tells the wall's time: the clock did jump.
        assert len({line[:10] for line in process.lines}) == 3
        process.popen.terminate()
        assert process.wait() == 0
    assert [answer.status for answer in load.answers] == [200] * len(load.answers)
    assert {answer.last_event["choices"][0]["finish_reason"] for answer in load.answers} == {"length"}
    assert all(answer.is_complete_stream for answer in load.answers)
