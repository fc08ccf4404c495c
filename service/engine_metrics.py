"""The engine's figures as metrics, read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from engines.base import EngineInfo, EngineStats
from service.metric_families import add_histogram


class EngineCollector(Collector):
    """Turns an `EngineStats` snapshot into metrics when asked.

    `num_queued` counts the sequences that wait in front of the engine; they wait like those in its own queue.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], info: EngineInfo, num_queued: Callable[[], int]
    ) -> None:
        self._stats = stats
        self._info = info
        self._num_queued = num_queued

    def collect(self) -> Iterator[Metric]:
        """One snapshot, so that the figures of a scrape belong together."""
        stats = self._stats()
        yield from self._gauges(stats)
        yield from _totals(stats)
        steps = HistogramMetricFamily(
            "nybble_engine_step_seconds",
            "Time of a step of the engine, by what it computed.",
            labels=("kind",),
        )
        for kind, histogram in stats.step_seconds.items():
            add_histogram(steps, (kind.value,), histogram)
        yield steps
        yield SummaryMetricFamily(
            "nybble_grammar_compile_seconds",
            "Time to compile a grammar; cache hits do not count.",
            count_value=stats.num_grammar_compiles_total,
            sum_value=stats.grammar_compile_seconds_total,
        )
        engine = GaugeMetricFamily("nybble_engine_info", "The engine in use; always 1.", labels=("engine",))
        engine.add_metric((self._info.engine,), 1)
        yield engine

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        info = self._info
        num_waiting = stats.num_waiting + self._num_queued()
        for name, text, value in (
            ("nybble_num_requests_running", "Sequences being computed.", stats.num_running),
            ("nybble_num_requests_waiting", "Sequences that wait for a slot.", num_waiting),
            ("nybble_kv_cache_usage_ratio", "Share of KV blocks in use, 0 to 1.", stats.kv_cache_usage),
            ("nybble_kv_blocks_used", "KV blocks held by live sequences.", stats.num_blocks_used),
            ("nybble_kv_blocks", "KV blocks in all.", stats.num_blocks_total),
            ("nybble_kv_block_size_tokens", "Tokens in a KV block.", info.block_size),
            ("nybble_max_num_seqs", "Sequences computed together at most.", info.max_num_seqs),
            ("nybble_max_model_len_tokens", "Tokens of a sequence at most.", info.max_model_len),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def _totals(stats: EngineStats) -> Iterator[Metric]:
    cached = stats.num_cached_prompt_tokens_total
    for name, text, value in (
        ("nybble_preemptions", "Sequences that lost their blocks.", stats.num_preemptions_total),
        ("nybble_prompt_tokens", "Prompt tokens taken in.", stats.num_prompt_tokens_total),
        ("nybble_cached_prompt_tokens", "Prompt tokens found in the prefix cache.", cached),
        ("nybble_generated_tokens", "Tokens generated.", stats.num_generated_tokens_total),
        ("nybble_draft_tokens", "Tokens guessed ahead.", stats.num_draft_tokens_total),
        ("nybble_accepted_draft_tokens", "Guesses that came true.", stats.num_accepted_draft_tokens_total),
        ("nybble_engine_steps", "Steps of the engine.", stats.num_steps_total),
    ):
        yield CounterMetricFamily(name, text, value=value)
