"""`python -m engines.bench.peers.workers WORKER OPTIONS`: serve the system of the module WORKER."""

from __future__ import annotations

import sys
from importlib import import_module

from engines.bench.peers.workers.worker_loop import LoadedSystem, WorkerOptions, serve


def load(options: WorkerOptions) -> LoadedSystem:
    """Import the system only now: threads are counted and bound, and its absence can be told."""
    system: LoadedSystem = import_module(f"engines.bench.peers.workers.{sys.argv[1]}").load(options)
    return system


if __name__ == "__main__":
    serve(load, sys.argv[2])
