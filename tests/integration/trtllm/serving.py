"""The HTTP service over TensorRT-LLM's fake."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from engines.registry import create_engine
from service.app import create_app
from service.lifecycle import Phase
from service.server import DrainingServer
from service.settings import ServiceSettings
from service.sockets import bind
from service.state import ServiceState
from tests.support.service import wait_until


@dataclass(frozen=True)
class Served:
    """A server and its inside. `failure` is what the command would exit with."""

    url: str
    state: ServiceState
    server: DrainingServer
    thread: threading.Thread

    @property
    def failure(self) -> str:
        assert self.server.failure is not None
        return self.server.failure

    @property
    def num_running(self) -> int:
        model = self.state.loaded_model
        return 0 if model is None else model.engine.stats().num_running

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.state.lifecycle.phase is Phase.READY, seconds=20, what="ready")

    def wait_until_ended(self) -> None:
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()

    def complete(self, prompt: list[int], **fields: object) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{self.url}/v1/completions", json={**body, **fields}, timeout=20)


@contextmanager
def served(checkpoint: Path, *, shutdown_seconds: float = 0.5, **fields: object) -> Iterator[Served]:
    """Starts at once; whether it gets ready is the test's business. It has to end in time in any case."""
    settings = ServiceSettings.model_validate(
        {
            "checkpoint": checkpoint,
            "engine": "trtllm",
            "served_model_names": ("tiny",),
            "max_model_len": 256,
            "drain_timeout_seconds": 5.0,
            **fields,
        }
    )

    def engine_of_the_test() -> object:
        engine = create_engine(settings.engine, settings.engine_options())
        engine._watch_seconds = 0.02
        engine._shutdown_seconds = shutdown_seconds
        return engine

    app = create_app(settings, engine_of_the_test)
    listener = bind("127.0.0.1", 0)
    server = DrainingServer(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service, server, thread)
    finally:
        if thread.is_alive():
            server.handle_exit(signal.SIGTERM, None)
        thread.join(timeout=20)
        assert not thread.is_alive()
