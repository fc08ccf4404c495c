"""Soak a service: `python -m benchmarks.soak.run --minutes 10 --overload 3 --output FILE`.

A `nybble serve` with the echo engine, slowed down so that its capacity is known, first gets as much as it can
do and then a multiple of it. The checks are those of findings.py; the exit status is 1 when one fails.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import record
from benchmarks.soak.findings import Check, Observed, check_all
from benchmarks.soak.server import ServerUnderTest
from benchmarks.soak.traffic import Traffic
from engines.bench.record import write_document

STEP_SECONDS = 0.04
MAX_NUM_SEQS = 16
QUEUED_REQUESTS = 48
# Mean generated tokens of the mix's average request; capacity in requests a second follows from it.
_TOKENS_PER_REQUEST = 22.0
_GAUGES = ("nybble_num_requests_running", "nybble_num_requests_waiting", "nybble_kv_blocks_used")


async def soak(checkpoint: Path, minutes: float, overload: float) -> tuple[list[Check], dict[str, object]]:
    """Both phases; the checks and a record of what was done."""
    capacity = MAX_NUM_SEQS / STEP_SECONDS / _TOKENS_PER_REQUEST
    with ServerUnderTest(checkpoint, STEP_SECONDS, MAX_NUM_SEQS, QUEUED_REQUESTS) as server:
        await phase(server, capacity / 2, 5.0, seed=0)  # warm-up
        at_capacity = await phase(server, 1.2 * capacity, max(20.0, minutes * 6), seed=1)
        prober = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.soak.prober", str(server.health_port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        lines = asyncio.create_task(_lines(prober))
        try:
            overloaded = await phase(server, overload * capacity, minutes * 60, seed=2)
        finally:
            assert prober.stdin is not None
            prober.stdin.close()
        health = [(float(line.split()[0]), int(line.split()[1])) for line in await lines]
        left = await _left(server)
    statuses = Counter(str(e.status) for e in overloaded.exchanges)
    figures = {
        "offered_requests_per_second": round(overload * capacity, 2),
        "capacity_tokens_per_second": MAX_NUM_SEQS / STEP_SECONDS,
        "goodput_at_capacity": round(at_capacity.goodput, 1),
        "goodput_overloaded": round(overloaded.goodput, 1),
        "num_requests": len(overloaded.exchanges),
        "statuses": dict(sorted(statuses.items())),
        "num_cancelled": sum(e.was_cancelled for e in overloaded.exchanges),
        "resident_bytes": list(overloaded.resident_bytes[:: max(1, len(overloaded.resident_bytes) // 30)]),
    }
    return check_all(at_capacity, overloaded, health, left), figures


async def phase(
    server: ServerUnderTest, requests_per_second: float, seconds: float, *, seed: int
) -> Observed:
    """One stretch of traffic."""
    resident: list[int] = []

    async def observe() -> None:
        resident.append(server.resident_bytes())

    traffic = Traffic(server.port, seed)
    started = time.monotonic()
    await traffic.run(requests_per_second, seconds, observe)
    return Observed(traffic.exchanges, time.monotonic() - started, resident)


async def _lines(prober: asyncio.subprocess.Process) -> list[str]:
    """What the prober says until its end, read as it comes so that its pipe never fills."""
    assert prober.stdout is not None
    lines = [line.decode() async for line in prober.stdout]
    await prober.wait()
    return lines


async def _left(server: ServerUnderTest) -> dict[str, float]:
    """The engine's gauges once the last answer is out; cancelled ones get a moment to be let go."""
    deadline = time.monotonic() + 2.0
    while True:
        text = await asyncio.to_thread(server.metrics)
        left = {
            name: float(found[1]) for name in _GAUGES if (found := re.search(rf"^{name} (\S+)$", text, re.M))
        }
        if len(left) == len(_GAUGES) and (not any(left.values()) or time.monotonic() > deadline):
            return left
        await asyncio.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--overload", type=float, default=3.0, help="times the capacity (default 3)")
    parser.add_argument("--checkpoint", type=Path, help="whose tokenizer to use (default: the demo's)")
    record.add_output_option(parser)
    options = parser.parse_args(arguments)
    begun = record.begin("benchmarks.soak.run", arguments)
    root = Path(__file__).parents[2]
    checkpoint = options.checkpoint or root / "examples/demo_model/checkpoints/mistral-mxfp4"
    checks, figures = asyncio.run(soak(checkpoint, options.minutes, options.overload))
    for check in checks:
        print(f"{'holds ' if check.holds else 'FAILS '} {check.name}: {check.figures}")
    if options.output is not None:
        document = begun.document({**figures, "checks": [asdict(check) for check in checks]})
        write_document(document, options.output)
    sys.exit(0 if all(check.holds for check in checks) else 1)


if __name__ == "__main__":
    main()
