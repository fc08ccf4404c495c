"""What /metrics shows: the service's own figures, the process's, and the engine's at scrape time.

docs/metrics.md lists every name; a test compares the two.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engines.base import EngineInfo, EngineStats
from engines.request import FinishReason
from service.engine_metrics import EngineCollector
from service.errors import rejection_labels
from service.metric_aliases import TRTLLM_ALIASES, VLLM_ALIASES, aliased, vllm_cache_config
from service.metric_families import FastHistogram, LabelledHistogram
from service.version import package_version

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class ServiceMetrics:
    """The metrics of one app, in a registry of their own.

    Observed from the event loop's thread; `text` may be called from any.
    """

    def __init__(self, model_name: str, *, vllm_names: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._vllm_names = vllm_names
        self._define_http()
        self._define_sequences()
        self._define_process()

    def _define_http(self) -> None:
        registry = self.registry
        self.http_requests = Counter(
            "nybble_http_requests", "HTTP answers.", ("route", "method", "status"), registry=registry
        )
        self.http_request_seconds = LabelledHistogram(
            "nybble_http_request_seconds", "From a request to its answer's end.", "route", _SECONDS, registry
        )
        self.http_in_progress = Gauge(
            "nybble_http_requests_in_progress", "HTTP requests being answered.", registry=registry
        )
        self.rejected = Counter(
            "nybble_requests_rejected", "Requests answered with an error.", ("reason",), registry=registry
        )
        for label in rejection_labels():
            self.rejected.labels(label)
        self.cancelled = Counter(
            "nybble_requests_cancelled", "Requests whose client hung up before the end.", registry=registry
        )

    def _define_sequences(self) -> None:
        registry = self.registry
        self.finished = Counter(
            "nybble_sequences_finished", "Sequences that ended.", ("reason",), registry=registry
        )
        for reason in (*(reason.value for reason in FinishReason), "timeout"):
            self.finished.labels(reason)

        def seconds(name: str, text: str, bounds: tuple[float, ...] = _SECONDS) -> FastHistogram:
            return FastHistogram(f"nybble_{name}_seconds", text, bounds, registry)

        self.preparation_seconds = seconds(
            "request_preparation", "From arrival to submission to the engine: template and tokenizer."
        )
        self.queue_seconds = seconds("request_queue", "From submission to a sequence's first step.")
        self.prefill_seconds = seconds("request_prefill", "From a sequence's first step to its first token.")
        self.decode_seconds = seconds("request_decode", "From a sequence's first token to its last.")
        self.time_to_first_token_seconds = seconds(
            "time_to_first_token", "From arrival to the first token of a sequence; includes the queue."
        )
        self.inter_token_seconds = seconds(
            "inter_token", "The gap before each token but a sequence's first.", _TOKEN_SECONDS
        )
        self.request_seconds = seconds("request", "From arrival to a sequence's end.")
        self.prompt_tokens = FastHistogram(
            "nybble_request_prompt_tokens", "Prompt tokens of a sequence.", _TOKENS, registry
        )
        self.generated_tokens = FastHistogram(
            "nybble_request_generated_tokens", "Generated tokens of a sequence.", _TOKENS, registry
        )

    def _define_process(self) -> None:
        registry = self.registry
        self.model_load_seconds = Gauge(
            "nybble_model_load_seconds", "From the start of loading to readiness.", registry=registry
        )
        self.event_loop_lag_seconds = FastHistogram(
            "nybble_event_loop_lag_seconds", "How late the event loop wakes up.", _LAG_SECONDS, registry
        )
        self.tls_certificate_expiry_timestamp_seconds = Gauge(
            "nybble_tls_certificate_expiry_timestamp_seconds",
            "When the served certificate expires.",
            ("subject",),
            registry=registry,
        )
        model = Gauge("nybble_model_info", "The model served; always 1.", ("model_name",), registry=registry)
        model.labels(self._model_name).set(1)
        build = Gauge(
            "nybble_build_info", "This package; always 1.", ("version", "python_version"), registry=registry
        )
        build.labels(package_version(), platform.python_version()).set(1)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def watch_service(
        self,
        *,
        is_ready: Callable[[], bool],
        num_in_flight: Callable[[], int],
        num_queued_tokens: Callable[[], int],
    ) -> None:
        """Report readiness, the number of admitted sequences and the work that waits at every scrape."""
        ready = Gauge("nybble_ready", "1 while new requests are welcome.", registry=self.registry)
        ready.set_function(lambda: float(is_ready()))
        in_flight = Gauge("nybble_sequences_in_flight", "Admitted sequences.", registry=self.registry)
        in_flight.set_function(lambda: float(num_in_flight()))
        queued = Gauge("nybble_queued_tokens", "Work that waits for its turn.", registry=self.registry)
        queued.set_function(lambda: float(num_queued_tokens()))

    def watch_engine(
        self, stats: Callable[[], EngineStats], info: EngineInfo, *, num_queued: Callable[[], int]
    ) -> None:
        """Report the engine's figures at every scrape; `num_queued` counts what waits in front of it."""
        self.registry.register(EngineCollector(stats, info, num_queued))

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(_Collected(self.collect()))

    def collect(self) -> list[Metric]:
        """All families, the aliases among them."""
        families = [_without_created(family) for family in self.registry.collect()]
        both = list(aliased(families, TRTLLM_ALIASES, self._model_name))
        if self._vllm_names:
            both.extend(aliased(families, VLLM_ALIASES, self._model_name))
            both.extend(vllm_cache_config(families, self._model_name))
        return families + both


class _Collected(Collector):
    """Families in the form `generate_latest` asks for."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _without_created(family: Metric) -> Metric:
    """Without the time a series began, which doubles the text and which nobody reads."""
    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return family
