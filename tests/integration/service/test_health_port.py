"""Probes and metrics from a thread of their own: with keys, under load, while the main loop stands still."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.health_server import open_health_server
from service.sockets import bind
from tests.support.service import RunningServer, run_server, wait_until


@contextmanager
def health_client(server: RunningServer) -> Iterator[httpx.Client]:
    with (
        open_health_server(server.state, 0) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        assert port is not None
        yield http


def test_the_same_answers_as_on_the_main_port(checkpoint: Path) -> None:
    with run_server(checkpoint, health_port=0) as server, health_client(server) as http:
        with httpx.Client(base_url=server.url) as main:
            for path in ("live", "ready", "startup"):
                answer = http.get(f"/health/{path}")
                assert answer.json() == main.get(f"/health/{path}").json()
                assert answer.status_code == 200
                assert answer.headers["cache-control"] == "no-store"
            assert "nybble_ready 1.0" in http.get("/metrics").text
            server.state.lifecycle.begin_drain()
            assert http.get("/health/ready").json() == {
                **main.get("/health/ready").json(),
                "error": http.get("/health/ready").json()["error"],
            }
        assert http.get("/v1/models").status_code == 404


def test_the_metrics_need_a_key_when_there_are_keys(checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    with run_server(checkpoint, health_port=0, api_key_file=keys) as server, health_client(server) as http:
        for path in ("live", "ready", "startup"):
            assert http.get(f"/health/{path}").status_code == 200
        assert http.get("/metrics").status_code == 401
        assert http.get("/anything").status_code == 401
        assert http.get("/metrics", headers={"Authorization": "Bearer first-key"}).status_code == 200


def test_the_metrics_can_be_opened_here_and_here_only(checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    fields = {"health_port": 0, "api_key_file": keys, "metrics_without_key": True}
    with run_server(checkpoint, **fields) as server, health_client(server) as http:
        assert http.get("/metrics").status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_it_answers_while_the_main_loop_stands_still(checkpoint: Path) -> None:
    with (
        run_server(checkpoint, health_port=0, liveness_timeout_seconds=0.6) as server,
        health_client(server) as http,
    ):
        server.loop().call_soon_threadsafe(time.sleep, 2.0)
        wait_until(lambda: http.get("/health/ready").status_code == 503, seconds=2, what="not ready")
        wait_until(lambda: http.get("/health/live").status_code == 503, seconds=2, what="blocked")
        wait_until(lambda: http.get("/health/live").status_code == 200, seconds=10, what="alive again")
        assert http.get("/health/ready").status_code == 200


def test_off_means_none(checkpoint: Path) -> None:
    with run_server(checkpoint, health_port="off") as server, open_health_server(server.state, 0) as port:
        assert port is None


def test_a_taken_port_is_an_error_only_if_it_was_asked_for(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = bind("127.0.0.1", 0)
    with contextlib.closing(taken):
        port = taken.getsockname()[1]
        expected = f"cannot listen on 127.0.0.1:{port} for health checks"
        with (
            run_server(checkpoint, health_port=port) as server,
            pytest.raises(OSError, match=expected),
            open_health_server(server.state, 0),
        ):
            pass
        with run_server(checkpoint) as server, open_health_server(server.state, port - 1) as found:
            assert found is None
        assert "--health-port" in caplog.text


def test_the_port_is_free_again_afterwards(checkpoint: Path) -> None:
    with run_server(checkpoint, health_port=0) as server:
        with open_health_server(server.state, 0) as port:
            assert port is not None
        with contextlib.closing(bind("127.0.0.1", port)) as again:
            assert isinstance(again, socket.socket)
