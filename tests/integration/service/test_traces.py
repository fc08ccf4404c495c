"""Traces as a collector receives them."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engines.base import Engine
from service.app import create_app
from service.tracing import TracingUnavailable, open_tracing
from tests.support.otlp_receiver import OtlpReceiver, attributes, otlp_receiver
from tests.support.service import RunningServer, open_settings, run_server

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def receiver(checkpoint: Path) -> Iterator[OtlpReceiver]:
    """A collector that has got the traces of the requests made here; the server has ended."""
    with otlp_receiver() as receiver:
        with run_server(checkpoint, otlp_endpoint=receiver.url) as server:
            _chat(server, max_tokens=4)
            _chat(server, max_tokens=4, stream=True, n=2)
            httpx.post(f"{server.url}/v1/completions", json={"model": "absent", "prompt": "x"})
            httpx.get(f"{server.url}/health/ready")
            httpx.get(f"{server.url}/metrics")
        yield receiver


def _chat(server: RunningServer, **fields: object) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello there, you"}],
        "ignore_eos": True,
        "temperature": 0.5,
        **fields,
    }
    headers = {"traceparent": PARENT, "X-Request-Id": f"stream-{fields.get('stream', False)}"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200


def _no_engine() -> Engine:
    raise AssertionError("nothing is to be started")


def _server_span(receiver: OtlpReceiver, request_id: str) -> Span:
    (span,) = [span for span in receiver.spans() if attributes(span).get("nybble.request_id") == request_id]
    return span


def test_one_server_span_with_the_conventions_names(receiver: OtlpReceiver) -> None:
    span = _server_span(receiver, "stream-False")
    assert span.name == "chat tiny"
    assert span.kind == Span.SPAN_KIND_SERVER
    found = attributes(span)
    assert found.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < 30
    assert found.pop("gen_ai.usage.input_tokens") > 4
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "nybble.request_id": "stream-False",
        "nybble.num_preemptions": 0,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "nybble",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
    }
    (first,) = span.events
    assert first.name == "first token"
    assert span.start_time_unix_nano <= first.time_unix_nano <= span.end_time_unix_nano


def test_the_callers_trace_goes_on(receiver: OtlpReceiver) -> None:
    span = _server_span(receiver, "stream-False")
    assert span.trace_id.hex() == PARENT[3:35]
    assert span.parent_span_id.hex() == PARENT[36:52]


def test_the_parts_lie_below_it_in_order(receiver: OtlpReceiver) -> None:
    span = _server_span(receiver, "stream-False")
    parts = [part for part in receiver.spans() if part.parent_span_id == span.span_id]
    assert [part.name for part in parts] == ["tokenize", "queue", "prefill", "decode"]
    for before, after in pairwise(parts):
        assert before.end_time_unix_nano <= after.start_time_unix_nano + 50_000
    assert span.start_time_unix_nano <= parts[0].start_time_unix_nano


def test_each_answer_has_its_parts(receiver: OtlpReceiver) -> None:
    span = _server_span(receiver, "stream-True")
    assert attributes(span)["gen_ai.usage.output_tokens"] == 8
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["length", "length"]
    decodes = [
        part for part in receiver.spans() if part.parent_span_id == span.span_id and part.name == "decode"
    ]
    assert {attributes(part)["nybble.choice.index"] for part in decodes} == {0, 1}


def test_a_refusal_is_a_span_too_and_probes_are_none(receiver: OtlpReceiver) -> None:
    spans = [span for span in receiver.spans() if span.kind == Span.SPAN_KIND_SERVER]
    assert sorted(span.name for span in spans) == ["POST /v1/completions", "chat tiny", "chat tiny"]
    (refused,) = [span for span in spans if span.name.startswith("POST")]
    assert attributes(refused)["http.response.status_code"] == 404
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the client's fault, not the server's


def test_the_resource_names_the_service(receiver: OtlpReceiver) -> None:
    assert receiver.resource()["service.name"] == "nybble"


def test_the_environment_names_endpoint_and_service(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
        with run_server(checkpoint) as server:
            httpx.get(f"{server.url}/v1/models")
        assert receiver.resource()["service.name"] == "mine"
        assert receiver.resource()["deployment.environment.name"] == "test"
        assert [span.name for span in receiver.spans()] == ["GET /v1/models"]


def test_a_collector_that_is_gone_holds_nothing_up(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with run_server(checkpoint, otlp_endpoint=endpoint) as server:
            for _ in range(20):
                _chat(server, max_tokens=1)
            began = time.monotonic()
        assert time.monotonic() - began < 15


def test_off_without_an_endpoint(checkpoint: Path) -> None:
    assert open_tracing(open_settings(checkpoint), {}) is None
    configured = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"}
    assert open_tracing(open_settings(checkpoint), configured) is None


def test_without_the_extra_the_error_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingUnavailable, match=r"nybble\[otel\]"):
        create_app(open_settings(checkpoint, otlp_endpoint="http://127.0.0.1:4318"), _no_engine)


def test_another_protocol_is_refused(checkpoint: Path) -> None:
    configured = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(TracingUnavailable, match="http/protobuf"):
        open_tracing(open_settings(checkpoint), configured)
