"""A real `nybble serve` with keys under load, and a real Prometheus that scrapes its health port."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from tests.support.process import NybbleProcess, serve
from tests.support.shipping import ROOT, tool

DEMO = ROOT / "examples/demo_model/checkpoints/mistral-mxfp4"
_KEYS = {"alice": "key-of-alice", "batch": "key-of-batch"}
_WINDOW = "10s"  # of rates; the scrape is every second
_START_SECONDS = 60.0
# Longer than a KV block, so that the prefix cache finds it again.
_PREFIX = "The capital of France is Paris. " * 8


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, after Grafana's variables are filled in. Raises on a bad one."""
        return self._ask("query", {"query": with_variables(expression)})

    def query_range(self, expression: str, seconds: float, step_seconds: float = 1.0) -> list[dict[str, Any]]:
        """The series of the last `seconds`."""
        now = time.time()
        times = {"start": now - seconds, "end": now, "step": step_seconds}
        return self._ask("query_range", {"query": with_variables(expression), **times})

    def _ask(self, what: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=30).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters['query']}: {answer['error']}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def with_variables(expression: str) -> str:
    """What Grafana would send with every instance chosen."""
    for name, value in {"$instance": ".*", "$job": ".*", "$__rate_interval": _WINDOW}.items():
        expression = expression.replace(name, value)
    return expression


@contextmanager
def monitored_service(folder: Path) -> Iterator[tuple[NybbleProcess, Prometheus]]:
    """The demo on the CPU engine under a mixed load; everything written lies in `folder`."""
    keys = folder / "keys.toml"
    entries = (f'[[keys]]\nname = "{name}"\nkey = "{key}"\n' for name, key in _KEYS.items())
    keys.write_text("\n".join(entries), encoding="utf-8")
    options = ("--engine", "cpu", "--served-model-name", "demo", "--api-key-file", str(keys))
    limits = (
        "--max-num-seqs",
        "4",
        "--kv-cache-memory",
        "4MiB",
        "--health-port",
        "0",
        "--metrics-without-key",
    )
    with serve(DEMO, *options, *limits) as server, _prometheus(folder, _health_port(server)) as prometheus:
        stop = threading.Event()
        workers = [threading.Thread(target=_load, args=(server.url, seed, stop)) for seed in range(6)]
        for worker in workers:
            worker.start()
        try:
            yield server, prometheus
        finally:
            stop.set()
            for worker in workers:
                worker.join(timeout=60)


def _health_port(server: NybbleProcess) -> int:
    (port,) = re.findall(r"health checks and metrics on port (\d+)", "".join(server.log))
    return int(port)


@contextmanager
def _prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/nybble.rules.yml")],
        "scrape_configs": [{"job_name": "nybble", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (folder / "prometheus.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_ready(f"http://{address}/-/ready", process)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "Prometheus ended"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("Prometheus did not get ready")


def _load(url: str, seed: int, stop: threading.Event) -> None:
    """What clients do: streams, whole answers, repeated prompts, mistakes, and going away."""
    name = sorted(_KEYS)[seed % 2]
    questions = ["What is machine learning?", "What is the capital of France?", "Who are you?"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=_KEYS[name], max_retries=0, timeout=60) as client:
        for turn in range(10**6):
            if stop.is_set():
                return
            question = questions[(seed + turn) % len(questions)]
            stream = client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": question}],
                max_tokens=8 * (1 + turn % 6),
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for number, _ in enumerate(stream):
                if turn % 5 == 4 and number == 2:
                    stream.close()  # the client goes away
                    break
            client.completions.create(model="demo", prompt=f"{_PREFIX} {question}", max_tokens=16)
            _make_mistakes(url, client)


def _make_mistakes(url: str, client: openai.OpenAI) -> None:
    for broken in ({"model": "demo"}, {"model": "other", "prompt": "x"}):
        httpx.post(
            f"{url}/v1/completions",
            content=json.dumps(broken),
            headers={"Authorization": f"Bearer {client.api_key}", "Content-Type": "application/json"},
            timeout=60,
        )
    httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer wrong"}, timeout=60)
