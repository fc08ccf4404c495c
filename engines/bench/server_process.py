"""A `nybble serve` of one's own for the length of a benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from engines.bench.http_load import LoadFailed, Target

_READY_SECONDS = 900.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.1
_MODEL = "bench"


@asynccontextmanager
async def running_server(
    directory: Path, options: Sequence[str], on_start: Callable[[int], None] = lambda _: None
) -> AsyncIterator[Target]:
    """Serve `directory` on a free port of the loopback address, as a user would. Raises LoadFailed.

    `on_start` gets the process id before anything is loaded.
    """
    port = free_port()
    command = [
        sys.executable, "-c", "from service.cli import main; main()", "serve", str(directory),
        "--host", "127.0.0.1", "--port", str(port), "--health-port", "off",
        "--served-model-name", _MODEL, "--log-level", "warning", *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, env=_environment(os.environ)
        )
        on_start(process.pid)
        try:
            await _wait_until_ready(process, port)
            yield Target("127.0.0.1", port, _MODEL)
        except LoadFailed as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise LoadFailed(f"{error}\n{said[-2000:]}" if said else str(error)) from error
        finally:
            await _stop(process)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the operator's own settings, which would change what is measured."""
    return {name: value for name, value in environment.items() if not name.startswith("NYBBLE_")}


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _wait_until_ready(process: asyncio.subprocess.Process, port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise LoadFailed(f"the server ended with status {process.returncode} before it was ready")
        if await _is_ready(port):
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise LoadFailed(f"the server was not ready within {_READY_SECONDS:.0f} s")


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
