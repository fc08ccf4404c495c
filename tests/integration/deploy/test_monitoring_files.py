"""Dashboard and alert rules name metrics that exist, labels that they have, and pages that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts.grafana_dashboard import DASHBOARD, dashboard_text, panels
from service.errors import rejection_labels
from tests.support.service import RunningServer, run_server
from tests.support.shipping import ROOT, run, tool

RULES = ROOT / "deploy/prometheus/nybble.rules.yml"
ALERTS = [
    rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
EXPRESSIONS = {
    **{rule["alert"]: str(rule["expr"]) for rule in ALERTS},
    **{f"{panel.title} {legend}": query for panel in panels() for legend, query in panel.queries.items()},
}
_WORDS = re.compile(r"\b(nybble_\w+|process_\w+|trtllm_\w+|vllm:\w+)\b")
_SELECTORS = re.compile(r"\b(\w+)\{([^}]*)\}")
_FROM_SCRAPING = {"instance", "job", "namespace", "service", "le"}


@pytest.fixture(scope="module")
def labels(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """The labels of each series the app can show, by its name as queries write it."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text('[[keys]]\nname = "a"\nkey = "first-key"\nexpires = 2999-01-01T00:00:00Z\n')
    with run_server(golden / "mistral-mxfp4-ct", api_key_file=keys) as server:
        server.get("/v1/models")
        with server.client("first-key") as client:
            client.completions.create(model="tiny", prompt="abc", max_tokens=4)
        yield _series(server)


def _series(server: RunningServer) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in server.state.metrics.collect():
        endings = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "summary": ("_sum", "_count"),
        }.get(family.type, ("",))
        for ending in endings:
            found.setdefault(family.name + ending, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=list(EXPRESSIONS))
def test_it_names_metrics_and_labels_that_exist(expression: str, labels: dict[str, set[str]]) -> None:
    names = _WORDS.findall(expression)
    assert names or expression.startswith("up{")
    assert set(names) <= set(labels)
    for name, selector in _SELECTORS.findall(expression):
        if name == "up":  # Prometheus' own
            continue
        for label in re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', "", selector)):
            assert label in labels[name] | _FROM_SCRAPING, f"{name} has no label {label}"


def test_the_reasons_of_refusal_exist() -> None:
    known = set(rejection_labels())
    for expression in EXPRESSIONS.values():
        for reasons in re.findall(r'rejected_total\{[^}]*reason=~?"([^"]+)"', expression):
            assert set(reasons.split("|")) <= known


def test_the_dashboard_file_is_what_the_script_writes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard_text(), "run `make chart-files`"


def test_panels_do_not_overlap_and_fill_the_width() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_every_alert_has_a_page_in_the_runbook(rule: dict[str, dict[str, str]]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_alert_has_a_unit_test() -> None:
    tests = (ROOT / "deploy/prometheus/nybble.tests.yml").read_text(encoding="utf-8")
    for rule in ALERTS:
        assert f"alertname: {rule['alert']}\n        exp_alerts:" in tests


def test_promtool() -> None:
    checked = run(tool("promtool"), "check", "rules", RULES)
    assert checked.returncode == 0, checked.stderr
    tested = run(tool("promtool"), "test", "rules", RULES.with_name("nybble.tests.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
