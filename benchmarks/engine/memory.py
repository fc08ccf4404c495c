"""Memory and load time of `nybble serve`: `python -m benchmarks.engine.memory DIR --output FILE`.

Starts the service as a user does, watches its resident memory (anonymous and file-backed apart) while it
loads, idles and serves, and holds the peaks against what there must be: packed weights, keys and values of
the tokens served, and an allowance for everything else. With `--cold` it first loads with the checkpoint's
files out of the page cache, then from it.

Loading fills as much fresh memory as there are weights, and a virtual machine may have to ask its host for
every page of it: how fast the machine gives out fresh memory is measured before each start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import mmap
import os
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.cpu_time import user_and_system_seconds
from engines.bench.http_load import run_load
from engines.bench.server_process import running_server
from engines.capacity.model_cost import ModelCost, model_cost
from engines.checkpoint.checkpoint import Checkpoint

ALLOWANCE_BYTES = 300_000_000
TOLERANCE = 0.05
_INTERVAL_SECONDS = 0.01
_IDLE_SECONDS = 2.0
_FRESH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of a process: its own pages, and pages of mapped files, which can be had anew."""

    anonymous_bytes: int
    file_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.anonymous_bytes + self.file_bytes


class Watch:
    """Samples a process's memory in the background; `peak` is that of the phase since `begin`."""

    def __init__(self) -> None:
        self.started_at = 0.0
        self.peak = Resident(0, 0)
        self.process_id = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, process_id: int) -> None:
        """Watch from now on."""
        self.started_at = time.perf_counter()
        self.process_id = process_id
        self._task = asyncio.create_task(self._run())

    def begin(self) -> None:
        """A new phase."""
        self.peak = resident(self.process_id)

    async def stop(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            while True:
                now = resident(self.process_id)
                if now.total_bytes > self.peak.total_bytes:
                    self.peak = now
                await asyncio.sleep(_INTERVAL_SECONDS)


def resident(process_id: int) -> Resident:
    """As /proc/PID/status tells it (proc(5)); raises OSError when there is no such process any more."""
    found = {}
    for line in Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile", "RssShmem"):
            found[name] = int(value.split()[0]) * 1024
    if not found:
        raise ProcessLookupError(f"process {process_id} has ended")
    return Resident(found["RssAnon"], found["RssFile"] + found["RssShmem"])


def fresh_memory_rate() -> float:
    """Bytes a second at which one thread gets memory that nobody has used before, in huge pages."""
    with mmap.mmap(-1, _FRESH_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        fresh.madvise(mmap.MADV_HUGEPAGE)
        started = time.perf_counter()
        for start in range(0, _FRESH_BYTES, mmap.PAGESIZE):
            fresh[start] = 1
        return _FRESH_BYTES / (time.perf_counter() - started)


def drop_from_cache(directory: Path) -> None:
    """Ask for the files of `directory` to leave the page cache (posix_fadvise(2))."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def measure(directory: Path, cost: ModelCost, options: argparse.Namespace) -> dict[str, Any]:
    """One start of the service: load, idle, serve."""
    watch, fresh = Watch(), fresh_memory_rate()
    prompt = np.random.default_rng(0).integers(3, 1000, (options.streams, options.prompt_tokens)).tolist()
    async with running_server(directory, ["--engine", "cpu", *options.serve], watch.start) as target:
        try:
            load_seconds = time.perf_counter() - watch.started_at
            user_seconds, system_seconds = user_and_system_seconds(watch.process_id)
            loading = watch.peak
            await asyncio.sleep(_IDLE_SECONDS)
            watch.begin()
            idle = watch.peak
            await run_load(target, prompt, options.decode_tokens, options.streams)
            serving = watch.peak
        finally:
            await watch.stop()
    num_tokens = options.streams * (options.prompt_tokens + options.decode_tokens)
    kv_bytes = num_tokens * cost.kv_bytes_per_token("bfloat16")
    return {
        "fresh_memory_bytes_per_second": round(fresh),
        "load_seconds": round(load_seconds, 2),
        "load_cpu_seconds": {"user": user_seconds, "system": system_seconds},
        "loading_peak": judged(loading, cost, 0),
        "idle": judged(idle, cost, 0),
        "serving_peak": judged(serving, cost, kv_bytes),
    }


def judged(memory: Resident, cost: ModelCost, kv_bytes: int) -> dict[str, Any]:
    """Beside what there must be; `excess_bytes` is what is above it, negative when below."""
    needed = cost.resident_bytes + kv_bytes
    return {
        **asdict(memory),
        "total_bytes": memory.total_bytes,
        "kv_bytes": kv_bytes,
        "beside_weights_and_kv_bytes": memory.total_bytes - needed,
        "of_bound": round(memory.total_bytes / (needed + ALLOWANCE_BYTES), 4),
        "is_within_bound": memory.total_bytes <= (1 + TOLERANCE) * (needed + ALLOWANCE_BYTES),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument(
        "--cold", action="store_true", help="load once with the files out of the page cache too"
    )
    parser.add_argument("--repeats", type=int, default=3, help="starts from the page cache")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=16)
    parser.add_argument(
        "--serve", type=shlex.split, default=[], metavar="OPTIONS", help="of nybble serve: --serve='--x 1'"
    )
    record.add_output_option(parser)
    options = parser.parse_args()
    begun = record.begin("benchmarks.engine.memory")
    cost = model_cost(Checkpoint.open(options.directory), as_nvfp4=False)
    starts = []
    if options.cold:
        drop_from_cache(options.directory)
        starts.append({"page_cache": "cold", **asyncio.run(measure(options.directory, cost, options))})
    for _ in range(options.repeats):
        starts.append({"page_cache": "warm", **asyncio.run(measure(options.directory, cost, options))})
    figures = {
        "model": options.directory.name,
        "weight_bytes": cost.resident_bytes,
        "kv_bytes_per_token": cost.kv_bytes_per_token("bfloat16"),
        "allowance_bytes": ALLOWANCE_BYTES,
        "starts": starts,
    }
    record.publish(begun.document(figures), options.output)


if __name__ == "__main__":
    main()
