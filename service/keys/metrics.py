"""Per-key figures for /metrics, by the key's name."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.keys.ring import KeyRing


class KeyMetrics(Collector):
    """Reads the books of all keys in force at every scrape; a removed key's series end."""

    def __init__(self, ring: KeyRing, registry: CollectorRegistry) -> None:
        self._ring = ring
        self._reloads = Counter(
            "nybble_key_file_reloads", "Readings of the API key file.", ("result",), registry=registry
        )
        for result in ("ok", "error"):
            self._reloads.labels(result)
        self._healthy = Gauge(
            "nybble_key_file_healthy", "0 if the newest API key file could not be used.", registry=registry
        )
        self._healthy.set(1)
        registry.register(self)

    def reloaded(self, *, ok: bool) -> None:
        """Note a reading of the file."""
        self._reloads.labels("ok" if ok else "error").inc()
        self._healthy.set(1 if ok else 0)

    def collect(self) -> Iterator[Metric]:
        """Usage and expiry by name."""
        requests = CounterMetricFamily("nybble_key_requests", "Admitted requests.", labels=("key",))
        rejected = CounterMetricFamily(
            "nybble_key_rejected_requests",
            "Requests refused: the key's limits, a full server.",
            labels=("key",),
        )
        tokens = CounterMetricFamily("nybble_key_tokens", "Tokens used.", labels=("key", "kind"))
        running = GaugeMetricFamily(
            "nybble_key_requests_in_flight", "Requests that run or wait.", labels=("key",)
        )
        expiry = GaugeMetricFamily(
            "nybble_key_expiry_timestamp_seconds", "When the key expires, in Unix time.", labels=("key",)
        )
        for name, caller in list(self._ring.callers.items()):
            usage = caller.usage
            requests.add_metric((name,), usage.num_requests_total)
            rejected.add_metric((name,), usage.num_rejected_total)
            tokens.add_metric((name, "prompt"), usage.num_prompt_tokens_total)
            tokens.add_metric((name, "generated"), usage.num_generated_tokens_total)
            running.add_metric((name,), usage.num_running)
            if caller.key.expires is not None:
                expiry.add_metric((name,), caller.key.expires.timestamp())
        yield from (requests, rejected, tokens, running, expiry)
