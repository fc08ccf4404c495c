"""Prometheus reads the service under load, and every panel of the dashboard has data."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import yaml

from scripts.grafana_dashboard import panels
from tests.support.monitored_service import Prometheus, monitored_service, with_variables
from tests.support.shipping import ROOT, tool

_SECONDS = 120.0
# Always 0 or without series in a healthy run with this load; that they can be asked is enough.
_RULES = yaml.safe_load((ROOT / "deploy/prometheus/nybble.rules.yml").read_text(encoding="utf-8"))


def _has_a_number(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


def _without_data(prometheus: Prometheus, queries: dict[str, str]) -> dict[str, str]:
    return {
        name: with_variables(query)
        for name, query in queries.items()
        if not _has_a_number(prometheus.query_range(query, 30))
    }


def test_every_panel_has_data_under_load(tmp_path: Path) -> None:
    tool("prometheus")
    missing = {
        f"{panel.title}: {legend}": query for panel in panels() for legend, query in panel.queries.items()
    }
    assert len(missing) > 40
    with monitored_service(tmp_path) as (_, prometheus):
        deadline = time.monotonic() + _SECONDS
        while missing and time.monotonic() < deadline:
            missing = _without_data(prometheus, missing)
        assert not missing
        for group in _RULES["groups"]:
            for rule in group["rules"]:
                assert prometheus.query(rule["expr"]) == [], f"{rule['alert']} fires in a healthy service"
        (up,) = prometheus.query("up")
        assert up["value"][1] == "1"
        tokens = prometheus.query("nybble_generated_tokens_total")
        assert float(tokens[0]["value"][1]) > 0
