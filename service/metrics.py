"""What /metrics shows: the service's own histograms and counters, and the engine's figures at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.base import EngineStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class ServiceMetrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.http_requests = Counter(
            "nybble_http_requests", "HTTP answers.", ("route", "method", "status"), registry=registry
        )
        self.finished = Counter(
            "nybble_sequences_finished", "Sequences that ended by themselves.", ("reason",), registry=registry
        )
        self.rejected = Counter(
            "nybble_requests_rejected", "Requests answered with an error.", ("reason",), registry=registry
        )
        self.cancelled = Counter(
            "nybble_requests_cancelled", "Requests whose client hung up before the end.", registry=registry
        )
        self.preparation_seconds = Histogram(
            "nybble_request_preparation_seconds",
            "From arrival to submission to the engine: template and tokenizer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.time_to_first_token_seconds = Histogram(
            "nybble_time_to_first_token_seconds",
            "From arrival to the first token of a sequence; includes the time in the queue.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "nybble_inter_token_seconds",
            "Between two deliveries of a sequence, divided by the tokens in the later one.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "nybble_request_seconds", "From arrival to a sequence's end.", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Histogram(
            "nybble_request_prompt_tokens", "Prompt tokens of a sequence.", buckets=_TOKENS, registry=registry
        )
        self.generated_tokens = Histogram(
            "nybble_request_generated_tokens",
            "Generated tokens of a sequence.",
            buckets=_TOKENS,
            registry=registry,
        )
        info = Gauge("nybble_model", "The model served; always 1.", ("model_name",), registry=registry)
        info.labels(model_name).set(1)

    def watch(self, stats: Callable[[], EngineStats], in_flight: Callable[[], int]) -> None:
        """Report an engine's figures and the number of admitted sequences at every scrape."""
        self.registry.register(EngineCollector(stats))
        gauge = Gauge("nybble_sequences_in_flight", "Sequences holding a slot.", registry=self.registry)
        gauge.set_function(lambda: float(in_flight()))

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """Turns an `EngineStats` snapshot into metrics when asked."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """One snapshot, so that the figures of a scrape belong together."""
        stats = self._stats()
        gauges = (
            ("nybble_num_requests_running", "Sequences being computed.", stats.num_running),
            ("nybble_num_requests_waiting", "Sequences in the engine's queue.", stats.num_waiting),
            ("nybble_kv_cache_usage_ratio", "Share of KV blocks in use, 0 to 1.", stats.kv_cache_usage),
            ("nybble_kv_blocks_used", "KV blocks held by live sequences.", stats.num_blocks_used),
            ("nybble_kv_blocks", "KV blocks in all.", stats.num_blocks_total),
        )
        totals = (
            ("nybble_preemptions", "Sequences that lost their blocks.", stats.num_preemptions_total),
            ("nybble_prompt_tokens", "Prompt tokens taken in.", stats.num_prompt_tokens_total),
            (
                "nybble_cached_prompt_tokens",
                "Prompt tokens found in the prefix cache.",
                stats.num_cached_prompt_tokens_total,
            ),
            ("nybble_generated_tokens", "Tokens generated.", stats.num_generated_tokens_total),
            ("nybble_engine_steps", "Steps of the engine.", stats.num_steps_total),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, value in totals:
            yield CounterMetricFamily(name, text, value=value)
