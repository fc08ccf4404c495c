"""Counting in fixed buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from engines.histogram import HistogramRecorder
from service.metric_families import FastHistogram, LabelledHistogram

BOUNDS = (0.1, 1.0, 10.0)


def test_bounds_are_inclusive_and_the_last_bucket_has_none() -> None:
    recorder = HistogramRecorder(BOUNDS)
    for value in (0.0, 0.1, 0.11, 10.0, 10.1):
        recorder.observe(value)
    snapshot = recorder.snapshot()
    assert snapshot.upper_bounds == BOUNDS
    assert snapshot.counts == (2, 1, 1, 1)
    assert snapshot.count == 5
    assert snapshot.total == pytest.approx(20.31)


def test_a_value_counted_several_times() -> None:
    recorder = HistogramRecorder(BOUNDS)
    recorder.observe(0.5, 3)
    assert recorder.snapshot().counts == (0, 3, 0, 0)
    assert recorder.snapshot().total == pytest.approx(1.5)


def test_a_clock_that_went_back_counts_as_zero() -> None:
    recorder = HistogramRecorder(BOUNDS)
    recorder.observe(-5.0)
    assert recorder.snapshot().counts[0] == 1
    assert recorder.snapshot().total == 0


def test_a_snapshot_stays_as_it_is() -> None:
    recorder = HistogramRecorder(BOUNDS)
    before = recorder.snapshot()
    recorder.observe(1)
    assert before.count == 0


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_have_to_ascend(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        HistogramRecorder(bounds)


@given(st.lists(st.floats(0, 20, allow_nan=False)))
def test_the_text_is_that_of_prometheus_own_histogram(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogram("x_seconds", "Text.", BOUNDS, ours)
    reference = Histogram("x_seconds", "Text.", buckets=BOUNDS, registry=theirs)
    for value in values:
        fast.observe(value)
        reference.observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected


def test_series_of_a_label_are_counted_apart() -> None:
    registry = CollectorRegistry()
    histogram = LabelledHistogram("x_seconds", "Text.", "route", BOUNDS, registry)
    histogram.observe("/a", 0.5)
    histogram.observe("/a", 0.5)
    histogram.observe("/b", 5)
    assert registry.get_sample_value("x_seconds_count", {"route": "/a"}) == 2
    assert registry.get_sample_value("x_seconds_bucket", {"route": "/b", "le": "1.0"}) == 0
    assert registry.get_sample_value("x_seconds_bucket", {"route": "/b", "le": "10.0"}) == 1
