"""A client that leaves while its prompt is still being read frees its place at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.tokenizer import Tokenizer
from tests.support.drill import open_raw
from tests.support.service import RunningServer, run_server, wait_until


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[RunningServer]:
    with run_server(checkpoint) as server:
        yield server


@pytest.fixture
def hold_tokenizer(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Tokenising does not end before the test does; says whether it has begun.

    Nothing of it is left over for the next test: each text thread comes to the barrier once it has nothing
    else to do.
    """
    begun, goes_on = threading.Event(), threading.Event()
    encode = Tokenizer.encode

    def held(self: Tokenizer, *arguments: object, **keywords: object) -> object:
        begun.set()
        goes_on.wait(timeout=30)
        return encode(self, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", held)
    yield begun.is_set
    goes_on.set()
    asyncio.run(_all_text_threads_are_free(server))


async def _all_text_threads_are_free(server: RunningServer) -> None:
    num_threads = server.state.settings.num_text_threads
    barrier = threading.Barrier(num_threads)
    await asyncio.gather(*(server.state.in_text_thread(lambda: barrier.wait(30)) for _ in range(num_threads)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 3}),
    ],
)
def test_leaving_while_tokenising(
    server: RunningServer,
    hold_tokenizer: Callable[[], bool],
    path: str,
    body: dict[str, object],
    stream: bool,
) -> None:
    port = int(server.url.rpartition(":")[2])
    connection = open_raw(port, path, {"model": "tiny", "stream": stream, **body})
    wait_until(hold_tokenizer, seconds=10, what="it is being tokenised")
    assert server.state.admission.num_in_flight > 0
    connection.close()
    wait_until(lambda: server.state.admission.num_in_flight == 0, seconds=0.1, what="the places are free")
    assert server.num_in_engine() == 0
