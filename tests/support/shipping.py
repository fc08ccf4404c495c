"""What the tests of images, chart and alerts share: the tools, and the chart rendered by a real Helm."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/nybble"
VALUES = {
    path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))
}

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """The program's path: from scripts/shipping_tools.sh, beside this Python, or the system's."""
    places = [ROOT / ".tools/bin", Path(sys.executable).parent]
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed; scripts/shipping_tools.sh fetches it where it can be had")
    return found


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The finished command, standard output and error as text, whatever its status."""
    return subprocess.run(
        [*map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


def template(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart, as release demo in namespace llm."""
    return run(
        *(tool("helm"), "template", "demo", CHART, "--namespace", "llm", "--kube-version", "1.33.0"),
        *arguments,
    )


@functools.cache
def manifests(name: str, *settings: str) -> tuple[Manifest, ...]:
    """What the chart makes of ci/NAME-values.yaml and `--set` settings."""
    more = [part for setting in settings for part in ("--set", setting)]
    done = template("--values", VALUES[name], *more)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def values(name: str) -> dict[str, Any]:
    """The content of ci/NAME-values.yaml."""
    content: dict[str, Any] = yaml.safe_load(VALUES[name].read_text(encoding="utf-8"))
    return content


def of_kind(documents: tuple[Manifest, ...], kind: str) -> list[Manifest]:
    """The documents of one kind."""
    return [document for document in documents if document["kind"] == kind]


def pod_specs(documents: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Every pod's spec by what makes it."""
    specs = {}
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind in ("Deployment", "Job"):
            specs[kind] = spec["template"]["spec"]
        elif kind == "LeaderWorkerSet":
            templates = spec["leaderWorkerTemplate"]
            specs["leader"] = templates["leaderTemplate"]["spec"]
            specs["worker"] = templates["workerTemplate"]["spec"]
        elif kind == "Pod":
            specs["test"] = spec
    return specs


def pod_labels(documents: tuple[Manifest, ...]) -> list[dict[str, str]]:
    """The labels of every pod but the test's."""
    labels = []
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            labels.append(document["spec"]["template"]["metadata"]["labels"])
        elif document["kind"] == "LeaderWorkerSet":
            templates = document["spec"]["leaderWorkerTemplate"]
            labels += [templates[role]["metadata"]["labels"] for role in ("leaderTemplate", "workerTemplate")]
    return labels


def containers(spec: Manifest) -> list[Manifest]:
    """Containers and init containers of a pod's spec."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def serving_pod(documents: tuple[Manifest, ...]) -> Manifest:
    """The spec of the pod that answers."""
    specs = pod_specs(documents)
    return specs.get("Deployment") or specs["leader"]


def environment(container: Manifest) -> dict[str, str]:
    """A container's variables."""
    return {entry["name"]: entry["value"] for entry in container["env"]}
