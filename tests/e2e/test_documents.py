"""Every command in the documents runs, or says what it needs and this machine lacks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import (
    DOCUMENTS,
    NOT_RUN,
    PROGRAMS,
    RUN_ELSEWHERE,
    Block,
    as_script,
    blocks,
    make_workplace,
    outside_of_blocks,
)
from tests.support.process import NybbleProcess, serve
from tests.support.shipping import ROOT, tool

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
_SECONDS = 300


def _of(language: str, *needs: str) -> list[object]:
    chosen = [block for block in BLOCKS if block.language == language and block.needs in needs]
    return [pytest.param(block, id=block.name) for block in chosen]


@pytest.fixture
def workplace(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder, make_workplace(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[NybbleProcess]:
    """The demo under the names that the documents use."""
    names = [part for name in ("nybble-demo", "my-model") for part in ("--served-model-name", name)]
    with serve(ROOT / "examples/demo_model/checkpoints/mistral-mxfp4", "--engine", "cpu", *names) as running:
        yield running


def _run(script: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("block", _of("sh", ""))
def test_commands(block: Block, workplace: tuple[Path, dict[str, str]]) -> None:
    _run(as_script(block.text), *workplace)


@pytest.mark.parametrize("block", _of("sh", "needs-helm"))
def test_helm_commands(block: Block, workplace: tuple[Path, dict[str, str]]) -> None:
    tool("helm")
    _run(as_script(block.text), *workplace)


@pytest.mark.parametrize("block", _of("sh", "needs-server"))
def test_commands_to_a_server(
    block: Block, workplace: tuple[Path, dict[str, str]], server: NybbleProcess
) -> None:
    text = re.sub(r"http://127\.0\.0\.1:800[01]", server.url, block.text)
    text = text.replace("curl ", "curl --fail-with-body ")
    assert _run(as_script(text), *workplace)


@pytest.mark.parametrize("block", _of("python", ""))
def test_python(block: Block, tmp_path: Path, server: NybbleProcess) -> None:
    text = re.sub(r"http://127\.0\.0\.1:8000", server.url, block.text)
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_no_command_hides_from_the_test(document: Path) -> None:
    known = {
        "sh",
        "text",
        "python",
        "toml",
        "json",
        "yaml",
        "mermaid",
        "http",
        "promql",
        "c++",
        "cpp",
        "jinja",
        "",
    }
    for block in blocks(document):
        assert block.language in known, f"{block.name}: mark commands as sh (CONTRIBUTING.md)"
        if block.language == "sh":
            assert block.needs in {"", *RUN_ELSEWHERE, *NOT_RUN}, f"{block.name}: {block.needs} is unknown"
    for number, line in outside_of_blocks(document):
        assert not PROGRAMS.match(line), f"{document}:{number}: put commands into a block marked sh"


def test_the_markers_are_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for marker in (*RUN_ELSEWHERE, *NOT_RUN):
        assert f"`{marker}`" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    text = "\n".join(line for _, line in outside_of_blocks(document))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), f"{document}: {target}"
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document}: {target}"
