"""Draw the dashboard's panels with real data, to be looked at: a service under load and a real Prometheus.

python scripts/draw_dashboard.py PICTURE.png [--seconds 60]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from scripts.grafana_dashboard import panels
from scripts.grafana_panels import Panel
from tests.support.monitored_service import Prometheus, monitored_service

_COLUMNS = 4


def _legend(template: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value)
    return template


def _draw(axes: Axes, panel: Panel, prometheus: Prometheus, seconds: float) -> None:
    axes.set_title(f"{panel.title} [{panel.unit}]", fontsize=9)
    lines: list[tuple[str, list[Any]]] = []
    for legend, query in panel.queries.items():
        for series in prometheus.query_range(query, seconds):
            lines.append((_legend(legend, series["metric"]), series["values"]))
    end = time.time()
    for name, values in sorted(lines):
        times = [when - end for when, _ in values]
        axes.plot(times, [float(value) for _, value in values], label=name or None, linewidth=1)
    highest = max((float(value) for _, values in lines for _, value in values), default=0.0)
    axes.set_ylim(bottom=0, top=panel.maximum or 1.1 * highest or 1.0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if any(name for name, _ in lines):
        axes.legend(fontsize=6, loc="upper left")


def main() -> None:
    """Run the load for a while, then draw one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    every = panels()
    rows = -(-len(every) // _COLUMNS)
    figure, grid = plt.subplots(rows, _COLUMNS, figsize=(5 * _COLUMNS, 2.6 * rows), layout="constrained")
    with tempfile.TemporaryDirectory() as folder, monitored_service(Path(folder)) as (_, prometheus):
        time.sleep(options.seconds)
        for axes, panel in zip(grid.flat, every, strict=False):
            _draw(axes, panel, prometheus, options.seconds)
    for axes in list(grid.flat)[len(every) :]:
        axes.set_axis_off()
    figure.savefig(options.picture, dpi=80)


if __name__ == "__main__":
    main()
