"""The commands of the documents, and a folder in which they can be run.

A fenced block marked `sh` is run, line by line as bash does it, by tests/e2e/test_documents.py. One that
needs what a test machine lacks says so after the `sh`: see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.shipping import ROOT

# What a block may need instead of being run as it stands.
RUN_ELSEWHERE = {
    "run-by-ci": ".ci/run runs it, or it runs this test-suite",
    "needs-server": "run against a server that the test starts",
    "needs-helm": "run where Helm is installed",
}
NOT_RUN = {
    "needs-gpu": "an NVIDIA GPU and TensorRT-LLM",
    "needs-docker": "Docker Engine",
    "needs-cluster": "a Kubernetes cluster",
    "needs-network": "downloads",
    "needs-torch": "PyTorch and hours",
    "needs-time": "a machine to itself for minutes",
    "needs-root": "root, and programs of the system",
}
_ROOMS = ("docs", "deploy", "examples", "tests", "engines", "benchmarks")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "deploy/**/*.md",
        "examples/**/*.md",
        "tests/**/*.md",
        "engines/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^( *)```(.*)$")
PROGRAMS = re.compile(
    r"^ {4,}\$? ?(nybble|make|python3?|pip|docker|helm|kubectl|curl|mpirun|trtllm-\w+|cmake) [^=]"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it begins, its language, what it needs, its text."""

    document: Path
    line: int
    language: str
    needs: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of one document."""
    found: list[Block] = []
    opening: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and opening is None:
            opening, lines = (number, fence[2].strip(), fence[1]), []
        elif fence and opening is not None:
            language, _, needs = opening[1].partition(" ")
            found.append(Block(document, opening[0], language, needs.strip(), "\n".join(lines)))
            opening = None
        elif opening is not None:
            lines.append(line.removeprefix(opening[2]))
    assert opening is None, f"{document}: a fence is not closed"
    return found


def outside_of_blocks(document: Path) -> list[tuple[int, str]]:
    """Numbered lines that are in no fenced block."""
    inside, found = False, []
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


_SHIM = """#!{python}
# `nybble`, but a server chooses its ports and ends when it is ready.
import os, signal, subprocess, sys
real, arguments = {real!r}, sys.argv[1:]
if arguments[:1] != ["serve"] or "--print-config" in arguments or "--help" in arguments:
    os.execv(real, [real, *arguments])
command = [real, *arguments, "--port", "0", "--health-port", "0"]
process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
for line in process.stderr:
    sys.stderr.write(line)
    if " ready: " in line:
        process.send_signal(signal.SIGTERM)
sys.exit(process.wait())
"""


def make_workplace(folder: Path) -> dict[str, str]:
    """Fill `folder` with what the documents' commands speak of; the environment to run them in.

    Their placeholders exist: DIR, path/to/..., samples.jsonl and so on. The project's own folders are links.
    """
    for name in (
        *("examples", "tests", "benchmarks", "deploy", "scripts", "engines", "service"),
        "Makefile",
        "docs",
    ):
        (folder / name).symlink_to(ROOT / name)
    demo, golden = ROOT / "examples/demo_model/checkpoints", ROOT / "tests/golden"
    links = {
        "DIR": demo / "mistral-mxfp4",
        "path/to/checkpoint": demo / "mixtral-nvfp4",
        "path/to/bf16": golden / "base-mistral",
        "path/to/mxfp4": golden / "mistral-mxfp4-ct",
        "mixtral-nvfp4": demo / "mixtral-nvfp4",
        "mistral-mxfp4": demo / "mistral-mxfp4",
        "mistral-bf16": demo / "mistral-mxfp4",
    }
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    sentences = (
        "The capital of France is Paris.",
        "Machine learning finds patterns in data.",
        "How are you?",
    )
    lines = [f'{{"text": "{sentence}"}}\n' for sentence in sentences * 4]
    for name in ("samples.jsonl", "held-out.jsonl"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    (folder / "held-out.txt").write_text("\n\n".join(sentences * 4), encoding="utf-8")
    (folder / "nybble.toml").write_text(
        f'checkpoint = "{links["DIR"]}"\nmax_num_seqs = 8\n', encoding="utf-8"
    )
    return _environment(folder)


def _environment(folder: Path) -> dict[str, str]:
    tools = folder / ".bin"
    tools.mkdir()
    environment_bin = Path(sys.executable).parent
    (tools / "nybble").write_text(_SHIM.format(python=sys.executable, real=str(environment_bin / "nybble")))
    (tools / "nybble").chmod(0o755)
    # A link would not know its virtual environment.
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "python").chmod(0o755)
    # `make serve` without the installation, in which this test runs already.
    skipped = " ".join(
        f"-o {ROOT / '.venv' / name} -o .venv/{name}" for name in (".installed", ".installed-test")
    )
    (tools / "make").write_text(
        f'#!/bin/sh\nexec {shutil.which("make")} {skipped} "$@" VENV=.venv BIN={tools}\n'
    )
    (tools / "make").chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NYBBLE_")}
    path = os.pathsep.join(map(str, (tools, ROOT / ".tools/bin", environment_bin, os.environ["PATH"])))
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}


def as_script(text: str) -> str:
    """The block as bash runs it: the first failure ends it; files of the system are the workplace's own."""
    for place, file in {"/etc/nybble.toml": "nybble.toml", "/tmp/nybble-tiny": "nybble-tiny"}.items():
        text = text.replace(place, file)
    # Status 3 of a comparison is its verdict, and the test's model is a random one.
    text = re.sub(r"^nybble compare [^\\\n]*$", r"\g<0> || test $? = 3", text, flags=re.MULTILINE)
    return f"set -euo pipefail\n{text}\n"
