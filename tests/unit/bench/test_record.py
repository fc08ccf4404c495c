"""Records of benchmarks: what they say besides figures, and that they do not say where they were run."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks import record as benchmark_records
from engines.bench import record
from engines.bench.record import (
    BenchmarkRecord,
    command_line,
    commit,
    document_text,
    parse_busy_seconds,
    write_document,
)
from engines.cpu import kernels

OURS = ["command", "commit", "date", "seconds", "cores_used_by_others", "machine", "versions"]


def test_a_record_says_how_when_and_on_what() -> None:
    document = BenchmarkRecord("nybble", ["bench", "model"]).document(
        {"rate": 3.5}, ["typer", "no-such-thing"]
    )
    assert list(document) == [*OURS, "rate"]
    assert document["command"] == "nybble bench model"
    assert datetime.fromisoformat(document["date"]).utcoffset() is not None
    assert document["seconds"] >= 0
    assert document["machine"]["num_cores"] >= 1
    assert document["machine"]["isa"] in kernels.available_isas()
    assert document["machine"]["amx"] == kernels.amx_status()
    assert document["versions"]["typer"][0].isdigit()
    assert document["versions"]["no-such-thing"] is None
    json.dumps(document)


def test_a_figure_does_not_take_a_field_of_the_record() -> None:
    with pytest.raises(ValueError, match="machine"):
        BenchmarkRecord("x", []).document({"machine": 1, "rate": 2})


def test_modules_are_called_as_typed() -> None:
    document = benchmark_records.begin("benchmarks.soak.run", ["--minutes", "1"]).document({})
    assert document["command"] == "python -m benchmarks.soak.run --minutes 1"


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/somebody/models/7b", "7b"),
        ("--output=/tmp/record.json", "--output=record.json"),
        ("../elsewhere/model", "model"),
        ("benchmarks/results/soak.json", "benchmarks/results/soak.json"),
        ("two words", "'two words'"),
        ("--rows=1,8", "--rows=1,8"),
    ],
)
def test_no_path_of_a_machine_stays_in_a_command(word: str, kept: str) -> None:
    assert command_line("nybble", [word]) == f"nybble {kept}"


class Tree:
    """A small source tree under git."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.code = root / "engines" / "code.py"
        self.result = root / "benchmarks" / "results" / "old.json"
        for path in (self.code, self.result):
            path.parent.mkdir(parents=True)
            path.write_text("1\n")
        self.git("init", "-q")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "first")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.root), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()


def test_the_commit_and_whether_the_code_is_still_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path)
    monkeypatch.setattr(record, "_SOURCE_TREE", tmp_path)
    head = tree.git("rev-parse", "--short=12", "HEAD")
    assert commit() == head
    tree.result.write_text("2\n")
    assert commit() == head, "a record that was written anew is no change of the code"
    tree.code.write_text("2\n")
    assert commit() == f"{head}-dirty"


def test_an_installed_package_has_no_commit_of_the_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tree(tmp_path)
    monkeypatch.setattr(record, "_SOURCE_TREE", tmp_path / "engines")
    assert commit() is None


def test_busy_time_leaves_out_idle_waiting_and_guests() -> None:
    text = "cpu  100 20 30 5000 700 4 6 8 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert parse_busy_seconds(text, 100) == pytest.approx((100 + 20 + 30 + 4 + 6 + 8) / 100)
    assert parse_busy_seconds("intr 5\n", 100) is None


def test_rows_stay_rows_and_everything_is_json(tmp_path: Path) -> None:
    value = {
        "rows": [{"name": "a" * 50, "rates": [1.5] * 8}] * 2,
        "empty": {},
        "none": None,
        "text": "x" * 200,
    }
    lines = document_text(value).splitlines()
    assert json.loads("\n".join(lines)) == value
    assert lines[2].startswith('    {"name"')
    assert lines[2].endswith("1.5]},")
    path = tmp_path / "record.json"
    write_document(value, path)
    assert json.loads(path.read_text()) == value
    assert list(tmp_path.iterdir()) == [path]
