"""docs/metrics.md and the registry say the same: names, types, labels, aliases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from prometheus_client.core import Metric

from service.metric_aliases import TRTLLM_ALIASES, VLLM_ALIASES, Aliases
from tests.support.service import RunningServer, run_server

_DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
_TYPES = {"counter", "gauge", "histogram", "summary"}


@pytest.fixture(scope="module")
def used(checkpoint: Path) -> Iterator[RunningServer]:
    """A server that has answered a request, refused one, and shows all names."""
    with run_server(checkpoint, vllm_metric_names=True) as server:
        with server.client() as client:
            client.completions.create(model="tiny", prompt="abc", max_tokens=4)
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("absent")
        yield server


def _rows(num_cells: int) -> list[list[str]]:
    """The tables' rows whose first cell is a name of ours."""
    lines = _DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [row for row in rows if len(row) == num_cells]


def _exposed_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_metric_is_in_the_table_and_the_other_way_round(used: RunningServer) -> None:
    ours = {
        _exposed_name(family): family.type
        for family in used.state.metrics.collect()
        if family.name.startswith("nybble_")
    }
    documented = {_names(name)[0]: kind for name, kind, _, _ in _rows(4)}
    assert documented == ours
    assert set(ours.values()) <= _TYPES


def test_the_labels_are_those_of_the_table(used: RunningServer) -> None:
    documented = {_names(name)[0]: set(_names(labels)) for name, _, labels, _ in _rows(4)}
    families = [
        family
        for family in used.state.metrics.collect()
        if family.name.startswith("nybble_") and family.samples
    ]
    labels = {
        _exposed_name(family): {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in families
    }
    assert len(labels) > 25
    assert {name: documented[name] for name in labels} == labels


def _documented_aliases(column: int, prefix: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in _rows(3):
        aliases = [name.removesuffix("_total") for name in _names(row[column]) if name.startswith(prefix)]
        aliases = [alias for alias in aliases if alias != "vllm:cache_config_info"]
        if aliases:
            found[_names(row[0])[0].removesuffix("_total")] = aliases
    return found


@pytest.mark.parametrize(
    ("column", "prefix", "aliases"), [(1, "trtllm_", TRTLLM_ALIASES), (2, "vllm:", VLLM_ALIASES)]
)
def test_the_aliases_are_those_of_the_table(column: int, prefix: str, aliases: Aliases) -> None:
    assert _documented_aliases(column, prefix) == {name: list(others) for name, others in aliases.items()}


def test_an_alias_carries_the_original_figures(used: RunningServer) -> None:
    text = used.metrics()
    labels = 'finished_reason="length",model_name="tiny"'
    assert f"trtllm_request_success_total{{{labels}}} 1.0" in text
    assert f"vllm:request_success_total{{{labels}}} 1.0" in text
    assert 'vllm:generation_tokens_total{model_name="tiny"} 4.0' in text
    assert "trtllm_inter_token" not in text
    assert 'trtllm_time_per_output_token_seconds_count{model_name="tiny"} 3.0' in text
    assert 'vllm:inter_token_latency_seconds_bucket{le="+Inf",model_name="tiny"} 3.0' in text


# What the endpoint picker of the Gateway API inference extension asks a model server for.
@pytest.mark.parametrize(
    "name",
    [
        "trtllm_num_requests_waiting",
        "trtllm_num_requests_running",
        "trtllm_kv_cache_utilization",
        "trtllm_kv_cache_tokens_per_block",
        "trtllm_kv_cache_max_blocks",
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    ],
)
def test_an_endpoint_picker_finds_its_gauges(used: RunningServer, name: str) -> None:
    assert used.metric(f'{name}{{model_name="tiny"}}') >= 0
    assert f"# TYPE {name} gauge" in used.metrics()


def test_the_shape_of_the_cache_under_vllms_name(used: RunningServer) -> None:
    series = 'vllm:cache_config_info{block_size="16",model_name="tiny",num_gpu_blocks="0"}'
    assert used.metric(series) == 1


def test_vllms_names_are_off_by_default(echo: RunningServer) -> None:
    text = echo.metrics()
    assert "vllm:" not in text
    assert "trtllm_num_requests_running" in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text
