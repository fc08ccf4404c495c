"""Calls that may hang for ever, made on threads that do not keep the process alive."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any


def call_blocking(call: Callable[[], Any], name: str) -> asyncio.Future[Any]:
    """Run `call` on a daemon thread of its own; the future has its result or exception.

    The threads of `asyncio.to_thread` are joined when the interpreter exits: a call that hangs in a CUDA or
    MPI library would keep a process alive that has to be restarted.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
