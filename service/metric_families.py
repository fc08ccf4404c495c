"""Histograms cheap enough for every token, and their way into a Prometheus registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.histogram import Histogram, HistogramRecorder


def add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram
) -> HistogramMetricFamily:
    """Give the family one more series, in Prometheus' cumulative form; returns the family."""
    cumulative = 0
    buckets: list[tuple[str, float]] = []
    names = (*(repr(bound) for bound in histogram.upper_bounds), "+Inf")
    for name, count in zip(names, histogram.counts, strict=True):
        cumulative += count
        buckets.append((name, float(cumulative)))
    family.add_metric(labels, buckets=buckets, sum_value=histogram.total)
    return family


class FastHistogram(HistogramRecorder, Collector):
    """A histogram without labels. `observe` is called from one thread; scrapes may come from another.

    prometheus_client's own takes a lock and walks the buckets one by one, some five times the cost.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        super().__init__(bounds)
        self._name = name
        self._text = text
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The one series."""
        yield add_histogram(HistogramMetricFamily(self._name, self._text), (), self.snapshot())


class LabelledHistogram(Collector):
    """A histogram with one label, whose series appear with their first value."""

    def __init__(
        self, name: str, text: str, label: str, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = tuple(bounds)
        self._recorders: Mapping[str, HistogramRecorder] = {}
        registry.register(self)

    def observe(self, label_value: str, value: float) -> None:
        """Count `value` in the series of `label_value`."""
        recorder = self._recorders.get(label_value)
        if recorder is None:
            recorder = HistogramRecorder(self._bounds)
            # A new mapping, so that a scrape on another thread can go on walking the old one.
            self._recorders = {**self._recorders, label_value: recorder}
        recorder.observe(value)

    def collect(self) -> Iterator[Metric]:
        """All series."""
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        for label_value, recorder in self._recorders.items():
            add_histogram(family, (label_value,), recorder.snapshot())
        yield family
