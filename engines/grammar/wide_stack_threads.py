"""Threads with room for a recursive parser."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from engines.grammar.limits import COMPILE_STACK_BYTES

_starting = threading.Lock()


def wide_stack_threads(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads, all started here, have stacks of COMPILE_STACK_BYTES (touched as needed)."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
    everyone = threading.Barrier(num_threads + 1)
    with _starting:
        # The size is the interpreter's, for every thread started meanwhile: it is set for a moment only.
        previous = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            for _ in range(num_threads):
                pool.submit(everyone.wait)
        finally:
            threading.stack_size(previous)
    everyone.wait()
    return pool
