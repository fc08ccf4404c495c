"""Real servers for tests: uvicorn in a thread, the echo engine, and a view of the inside."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from engines.echo import EchoEngine
from service.app import create_app
from service.server import DrainingServer
from service.settings import ServiceSettings
from service.sockets import bind
from service.state import ServiceState

MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready, with a view of its inside."""

    url: str
    app: FastAPI
    state: ServiceState
    engine: EchoEngine
    server: DrainingServer
    thread: threading.Thread

    def client(self, api_key: str = "none", *, strict: bool = True) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=30,
            _strict_response_validation=strict,
        )

    def get(self, path: str) -> dict[str, Any]:
        answer = httpx.get(self.url + path, headers={"Authorization": "Bearer first-key"})
        payload: dict[str, Any] = answer.raise_for_status().json()
        return payload

    def document(self) -> dict[str, Any]:
        return self.get("/openapi.json")

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics").raise_for_status().text

    def metric(self, name: str) -> float:
        """The value of one series, written as in the exposition."""
        (line,) = [line for line in self.metrics().splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])

    def loop(self) -> asyncio.AbstractEventLoop:
        """The server's event loop."""
        return self.server.servers[0].get_loop()

    def num_in_engine(self) -> int:
        stats = self.engine.stats()
        return stats.num_running + stats.num_waiting


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Poll until `condition` holds; the time that took. Fails the test after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.002)
    return time.monotonic() - started


def open_settings(checkpoint: Path, **fields: object) -> ServiceSettings:
    """Settings for the echo engine."""
    return ServiceSettings.model_validate({"checkpoint": checkpoint, "engine": "echo", **fields})


@contextmanager
def run_server(
    checkpoint: Path, *, seconds_per_token: float = 0.0, **fields: object
) -> Iterator[RunningServer]:
    names = {"served_model_names": (MODEL, "org/tiny")}
    settings = open_settings(checkpoint, **{**names, "drain_timeout_seconds": 5.0, **fields})
    engine = EchoEngine(settings.engine_options(), seconds_per_token=seconds_per_token)
    app = create_app(settings, lambda: engine)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = DrainingServer(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        with httpx.Client(base_url=url) as client:
            wait_until(
                lambda: client.get("/health/ready").status_code == 200, seconds=30, what="server is ready"
            )
        yield RunningServer(url, app, app.state.service, engine, server, thread)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(timeout=20)
        assert not thread.is_alive()
