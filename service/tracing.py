"""OpenTelemetry traces: one server span for each request, with the parts of a generation below it.

Off unless an endpoint is configured; the packages come with the extra `otel` and are imported only then.
Attributes are those of the semantic conventions for HTTP and for generative AI. Spans leave in batches, from
a thread and a bounded queue of the SDK's own, so a collector that is slow or gone never holds a request up.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from service.request_account import GenerationFacts, RequestAccount, SequenceCost
from service.settings import ServiceSettings
from service.version import package_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SHUTDOWN_SECONDS = 3.0
# Probes and scrapes would bury the requests.
_UNTRACED = ("/health/", "/metrics")


class TracingUnavailable(Exception):
    """Traces were asked for and cannot be had."""


def open_tracing(settings: ServiceSettings, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Traces as `settings` or the OTEL_* variables ask for them; None when neither does.

    Raises TracingUnavailable.
    """
    configured = next((name for name in _ENDPOINT_VARIABLES if environment.get(name)), None)
    if settings.otlp_endpoint is None and configured is None:
        return None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((value for name in _PROTOCOL_VARIABLES if (value := environment.get(name))), None)
    if protocol not in (None, "http/protobuf"):
        raise TracingUnavailable(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; traces are sent as 'http/protobuf' only: unset it "
            "and give the collector's HTTP endpoint (port 4318 by convention)"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise TracingUnavailable(
            f"traces need the module {error.name!r}, which is not installed; install it with "
            "`pip install 'nybble[otel]'`, or remove --otlp-endpoint and the OTEL_EXPORTER_OTLP_* variables"
        ) from error
    # Without an argument the exporter reads the environment by itself.
    endpoint = None if settings.otlp_endpoint is None else _traces_url(settings.otlp_endpoint)
    return Tracing(OTLPSpanExporter(endpoint=endpoint), with_prompts=settings.trace_prompts)


class Tracing:
    """Makes spans and hands them to `exporter`."""

    def __init__(self, exporter: SpanExporter, *, with_prompts: bool) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource({"service.name": "nybble", "service.version": package_version()})
        # What the environment says comes last, and wins.
        given = Resource.create().attributes.items()
        resource = resource.merge(Resource({name: v for name, v in given if not _is_nameless(name, v)}))
        self._provider: TracerProvider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nybble", package_version())
        self._propagator = TraceContextTextMapPropagator()
        self._with_prompts = with_prompts

    def begin(self, scope: Mapping[str, Any]) -> RequestTrace | None:
        """The span of an HTTP request, below the caller's if it names one; None for probes and scrapes."""
        from opentelemetry.trace import SpanKind

        path: str = scope["path"]
        if path.startswith(_UNTRACED):
            return None
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            str(scope["method"]), context=self._propagator.extract(carrier), kind=SpanKind.SERVER
        )
        return RequestTrace(self, span, with_prompts=self._with_prompts)

    def part(self, name: str, parent: Span, began_ns: int, seconds: float, index: int | None) -> None:
        """A finished span below `parent`."""
        from opentelemetry.trace import set_span_in_context

        attributes = {} if index is None else {"nybble.choice.index": index}
        span = self._tracer.start_span(
            name, context=set_span_in_context(parent), start_time=began_ns, attributes=attributes
        )
        span.end(began_ns + int(seconds * 1e9))

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="nybble-traces", daemon=True)
        closing.start()
        closing.join(_SHUTDOWN_SECONDS)


class RequestTrace:
    """The span of one request."""

    def __init__(self, tracing: Tracing, span: Span, *, with_prompts: bool) -> None:
        self._tracing = tracing
        self._span = span
        self._with_prompts = with_prompts
        # Spans want wall-clock times, accounts are kept by a monotonic clock.
        self._wall_minus_clock_ns = time.time_ns() - int(time.perf_counter() * 1e9)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return format(self._span.get_span_context().trace_id, "032x")

    def end(self, scope: Mapping[str, Any], route: str, status: int, account: RequestAccount) -> None:
        """Note the outcome and hand the span over."""
        from opentelemetry.trace import Status, StatusCode

        span = self._span
        if span.is_recording():
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": route,
                    "http.response.status_code": status,
                    "url.path": scope["path"],
                    "url.scheme": scope["scheme"],
                    "nybble.request_id": scope["state"]["request_id"],
                }
            )
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(Status(StatusCode.ERROR))
            if account.generation is not None:
                self._describe(account.generation, account)
        span.end()

    def _describe(self, facts: GenerationFacts, account: RequestAccount) -> None:
        span = self._span
        span.update_name(f"{facts.operation} {facts.model}")
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": facts.operation,
            "gen_ai.provider.name": "nybble",
            "gen_ai.request.model": facts.model,
            "gen_ai.response.model": facts.model,
            "gen_ai.response.id": facts.response_id,
            "gen_ai.request.choice.count": facts.num_choices,
            "gen_ai.request.stream": facts.is_streamed,
            "gen_ai.request.max_tokens": facts.max_tokens,
            "gen_ai.request.temperature": facts.temperature,
            "gen_ai.request.top_p": facts.top_p,
            "gen_ai.usage.input_tokens": account.num_prompt_tokens,
            "gen_ai.usage.output_tokens": account.num_generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": account.num_cached_tokens,
            "gen_ai.response.finish_reasons": account.finish_reasons,
            "gen_ai.response.time_to_first_chunk": account.time_to_first_token_seconds,
            "nybble.num_preemptions": account.num_preemptions,
        }
        if self._with_prompts:
            attributes["gen_ai.input.messages"] = orjson.dumps(facts.prompt).decode()
            attributes["gen_ai.output.messages"] = orjson.dumps(_answers(facts)).decode()
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if account.time_to_first_token_seconds is not None:
            first = account.arrived + account.time_to_first_token_seconds
            span.add_event("first token", timestamp=self._wall_ns(first))
        if account.tokenize_began is not None and account.tokenize_seconds is not None:
            self._part("tokenize", account.tokenize_began, account.tokenize_seconds, None)
        for index, cost in account.sequences.items():
            self._parts(index, cost)

    def _parts(self, index: int, cost: SequenceCost) -> None:
        moment = cost.began
        for name, seconds in (
            ("queue", cost.queue_seconds),
            ("prefill", cost.prefill_seconds),
            ("decode", cost.decode_seconds),
        ):
            if seconds is None:
                return
            self._part(name, moment, seconds, index)
            moment += seconds

    def _part(self, name: str, began: float, seconds: float, index: int | None) -> None:
        self._tracing.part(name, self._span, self._wall_ns(began), seconds, index)

    def _wall_ns(self, moment: float) -> int:
        return self._wall_minus_clock_ns + int(moment * 1e9)


def _answers(facts: GenerationFacts) -> Iterable[dict[str, str]]:
    return [
        {"role": "assistant", "content": "".join(texts)} for _, texts in sorted((facts.answers or {}).items())
    ]


def _traces_url(endpoint: str) -> str:
    """The collector's address, with the path for traces unless it has one."""
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


def _is_nameless(name: str, value: object) -> bool:
    return name == "service.name" and str(value).startswith("unknown_service")
