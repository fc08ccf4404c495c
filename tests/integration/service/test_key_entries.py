"""Key files with entries, in a running server: limits, scopes, expiry, rotation, and no key in any log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from engines.request import GenerationRequest, TokenOutput
from tests.support.raw_request import open_request
from tests.support.service import RunningServer, run_server, wait_until

KEYS = """
[[keys]]
name = "alice"
key = "secret-of-alice"
requests_per_minute = 3
tokens_per_minute = 1000

[[keys]]
name = "bob"
key = "secret-of-bob"
max_concurrent_requests = 1
priority = "low"

[[keys]]
name = "scraper"
key = "secret-of-scraper"
scopes = ["metrics"]

[[keys]]
name = "root"
key = "secret-of-root"
scopes = ["inference", "metrics", "admin"]

[[keys]]
name = "old"
key = "secret-of-old"
expires = 2020-01-01T00:00:00Z
"""
TEXT: dict[str, object] = {"model": "tiny", "prompt": "hello", "ignore_eos": True, "max_tokens": 450}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server and the file its keys are in."""

    server: RunningServer
    file: Path

    def request(self, name: str, method: str, path: str, **fields: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer secret-of-{name}"}
        return httpx.request(method, self.server.url + path, headers=headers, json=fields or None, timeout=30)

    def complete(self, name: str, **fields: object) -> httpx.Response:
        return self.request(name, "POST", "/v1/completions", **{**TEXT, "max_tokens": 5, **fields})

    def names(self) -> set[str]:
        answer = self.request("root", "GET", "/admin/keys").raise_for_status().json()
        return {key["name"] for key in answer["keys"]}


@pytest.fixture
def guarded(checkpoint: Path, tmp_path: Path) -> Iterator[Guarded]:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    with run_server(checkpoint, api_key_file=file, max_num_seqs=4, seconds_per_token=0.002) as server:
        yield Guarded(server, file)


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def test_rate_limit_headers_and_the_refusal(guarded: Guarded) -> None:
    first = guarded.complete("alice")
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    streamed = guarded.complete("alice", stream=True)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "1"
    assert guarded.complete("alice").status_code == 200
    refused = guarded.complete("alice")
    assert refused.status_code == 429
    assert code_of(refused) == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "requests"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    # What was used is booked, not what might have been.
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) > 900
    assert "x-ratelimit-limit-requests" not in guarded.complete("bob").headers
    with guarded.server.client("secret-of-alice") as client, pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="tiny", prompt="x")
    assert caught.value.code == "rate_limit_exceeded"


def test_tokens_per_minute(guarded: Guarded) -> None:
    assert guarded.complete("alice", max_tokens=450, ignore_eos=True).status_code == 200
    assert guarded.complete("alice", max_tokens=450, ignore_eos=True).status_code == 200
    refused = guarded.complete("alice", max_tokens=450)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    impossible = guarded.complete("alice", n=10, max_tokens=450)
    assert impossible.status_code == 400
    assert "more than the API key" in impossible.json()["error"]["message"]


def test_a_refused_or_failed_request_books_no_tokens(guarded: Guarded) -> None:
    answer = guarded.complete("alice", max_tokens=900)
    assert answer.status_code == 400  # longer than the context
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"


def test_requests_at_a_time(guarded: Guarded) -> None:
    held = open_request(guarded.server, "/v1/completions", TEXT, key="secret-of-bob")
    wait_until(lambda: guarded.server.num_in_engine() == 1, seconds=5, what="it runs")
    refused = guarded.complete("bob")
    assert refused.status_code == 429
    assert "at a time (1)" in refused.json()["error"]["message"]
    metrics = guarded.request("root", "GET", "/metrics").text
    assert 'nybble_key_rejected_requests_total{key="bob"} 1.0' in metrics
    assert 'nybble_key_requests_in_flight{key="bob"} 1.0' in metrics
    held.close()
    wait_until(lambda: guarded.complete("bob").status_code == 200, seconds=5, what="bob may again")


def test_scopes_and_expiry(guarded: Guarded) -> None:
    assert guarded.request("scraper", "GET", "/metrics").status_code == 200
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/admin/keys")):
        answer = guarded.request("scraper", method, path)
        assert (answer.status_code, code_of(answer)) == (403, "missing_scope")
    assert guarded.request("alice", "GET", "/metrics").status_code == 403
    with guarded.server.client("secret-of-scraper") as client, pytest.raises(openai.PermissionDeniedError):
        client.models.list()
    expired = guarded.complete("old")
    assert (expired.status_code, code_of(expired)) == (401, "invalid_api_key")
    assert "expired on 2020-01-01" in expired.json()["error"]["message"]


def test_administration_and_metrics_show_names_and_no_secrets(guarded: Guarded) -> None:
    guarded.complete("bob")
    listed = guarded.request("root", "GET", "/admin/keys")
    keys = {key["name"]: key for key in listed.json()["keys"]}
    assert sorted(keys) == ["alice", "bob", "old", "root", "scraper"]
    assert keys["bob"]["num_generated_tokens_total"] == 5
    assert keys["bob"]["num_requests_in_flight"] == 0
    assert (keys["bob"]["priority"], keys["bob"]["max_concurrent_requests"]) == (100, 1)
    assert keys["old"]["expires"] == "2020-01-01T00:00:00Z"
    metrics = guarded.request("root", "GET", "/metrics")
    assert 'nybble_key_requests_total{key="bob"} 1.0' in metrics.text
    assert 'nybble_key_tokens_total{key="bob",kind="generated"} 5.0' in metrics.text
    assert 'nybble_key_expiry_timestamp_seconds{key="old"}' in metrics.text
    for answer in (listed, metrics):
        assert "secret" not in answer.text
        assert "digest" not in answer.text


def test_a_key_rotated_under_load(guarded: Guarded) -> None:
    held = open_request(guarded.server, "/v1/completions", {**TEXT, "stream": True}, key="secret-of-alice")
    held.recv(1)
    guarded.file.write_text(KEYS.replace("secret-of-alice", "secret-of-alice-2"))
    assert guarded.request("root", "POST", "/admin/keys/reload").status_code == 200
    assert guarded.complete("alice").status_code == 401
    renewed = guarded.complete("alice-2")
    assert renewed.status_code == 200
    assert renewed.headers["x-ratelimit-remaining-requests"] == "1"  # the books go on
    received = b""
    while not received.endswith(b"0\r\n\r\n"):  # what ran when the key was taken away goes on to its end
        received += held.recv(65536)
    assert b"[DONE]" in received
    held.close()


def test_a_changed_file_is_noticed_and_a_broken_one_ignored(guarded: Guarded) -> None:
    guarded.file.write_text(KEYS + '[[keys]]\nname = "carol"\nkey = "secret-of-carol"\n')
    wait_until(lambda: "carol" in guarded.names(), seconds=5, what="the new key is in force")
    guarded.file.write_text(KEYS + "[[keys]]\nname = ")
    refused = guarded.request("root", "POST", "/admin/keys/reload")
    assert refused.status_code == 400
    assert "not valid TOML" in refused.json()["error"]["message"]
    assert "carol" in guarded.names()
    assert "nybble_key_file_healthy 0.0" in guarded.request("root", "GET", "/metrics").text


def test_a_key_cannot_push_in_front_of_its_class(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    generate = guarded.server.engine.generate

    def spy(request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        seen.append(request.priority)
        return generate(request)

    monkeypatch.setattr(guarded.server.engine, "generate", spy)
    for priority in (None, -5, 200):
        assert guarded.complete("bob", priority=priority).status_code == 200
    assert seen == [100, 100, 200]


def test_keys_are_in_no_log(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with caplog.at_level(logging.DEBUG):
        for name in ("alice", "old", "scraper", "nobody"):
            guarded.complete(name)
        guarded.request("root", "POST", "/admin/keys/reload")
        guarded.file.write_text(KEYS + "[[keys]]\nname = 'x'\nkey = 'secret-of-x'\nbad = 1")
        guarded.request("root", "POST", "/admin/keys/reload")
    assert len(caplog.records) > 5
    # The tests' own client logs nothing of its headers either.
    everything = "\n".join(json.dumps({**record.__dict__}, default=str) for record in caplog.records)
    assert "secret-of" not in everything


def test_one_keys_flood_does_not_hold_up_another(guarded: Guarded) -> None:
    flood = [open_request(guarded.server, "/v1/completions", TEXT, key="secret-of-root") for _ in range(40)]
    wait_until(lambda: guarded.server.state.admission.num_queued >= 35, seconds=5, what="a long queue")
    answer = guarded.complete("alice")
    assert answer.status_code == 200
    # Alice came last and is served while most of the flood has not even begun.
    assert guarded.server.state.admission.num_queued >= 20
    for connection in flood:
        connection.close()
    wait_until(lambda: guarded.server.num_in_engine() == 0, seconds=5, what="the engine is idle")
