"""The tables of the documentation, from the files that compare_methods wrote.

python -m benchmarks.accuracy.tables RESULT.json ...            methods
python -m benchmarks.accuracy.tables --tasks RESULT.json ...    right answers by task
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_NAMES = {"checkpoint": "W4A4", "bf16": "W4A16"}
_SHOWN_BY_TASK = ("rtn", "gptq", "distilled, rtn")


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--tasks", action="store_true")
    arguments = parser.parse_args()
    for path in arguments.results:
        result = json.loads(path.read_text(encoding="utf-8"))
        print("\n".join(by_task(result) if arguments.tasks else by_method(result)), end="\n\n")


def by_method(result: Row) -> list[str]:
    """One line for each checkpoint: both activation modes side by side."""
    head = [f"{result['master']}, method"]
    for name in ("W4A4", "W4A16"):
        head += [f"{name} perplexity", "loss taken back", "KL", "exact"]
    lines = _head(head)
    reference, *rows = result["rows"]
    blank = ["", "", f"{reference['exact']:.1%}"]
    lines.append(_line(["BF16", f"{reference['perplexity']:.4f}", *blank, *[""] * 4]))
    for index in range(0, len(rows), 2):
        cells = [f"{rows[index]['format']} {rows[index]['method']}"]
        for row in rows[index : index + 2]:
            closed = "" if row["method"] == "rtn" else _percent(row.get("gap_closed"))
            cells += [f"{row['perplexity']:.4f}", closed, f"{row['mean_kl']:.5f}", f"{row['exact']:.1%}"]
        lines.append(_line(cells))
    return lines


def by_task(result: Row) -> list[str]:
    """One line for each task; a column for BF16 and for the methods that are shown."""
    reference, *rows = result["rows"]
    columns = [row for row in rows if row["method"] in _SHOWN_BY_TASK]
    titles = [f"{row['format']} {row['method']} {_NAMES[row['activations']]}" for row in columns]
    lines = _head([f"{result['master']}, task (questions)", "BF16", *titles])
    for task, (right, total) in sorted(reference["tasks"].items()):
        lines.append(_line([f"{task} ({total})", right, *(row["tasks"][task][0] for row in columns)]))
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---", *["--:"] * (len(cells) - 1)])]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


if __name__ == "__main__":
    main()
