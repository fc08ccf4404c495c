"""The Dockerfile, the locks it builds from, and the small programs inside the images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.shipping import ROOT, run, tool

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKER = ROOT / "deploy/docker"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
_PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def test_hadolint_has_nothing_to_say() -> None:
    done = run(tool("hadolint"), "Dockerfile")
    assert done.returncode == 0, done.stdout
    assert not done.stdout


def test_both_targets_are_there_and_nobody_is_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = {stage.split(" AS ")[1].split()[0]: stage for stage in stages}
    assert list(final) == ["cpu-build", "cpu", "tensorrt-llm-build", "tensorrt-llm"]
    for name in ("cpu", "tensorrt-llm"):
        for instruction in ("USER 10001:10001", "STOPSIGNAL SIGTERM", "HEALTHCHECK", "EXPOSE 8000 8001"):
            assert instruction in final[name]
        for label in ("title", "description", "licenses", "version", "revision"):
            assert f"org.opencontainers.image.{label}=" in final[name]


def test_a_new_engine_volume_belongs_to_the_user() -> None:
    # A named volume takes owner and mode from the image's folder of that name.
    assert "install --directory --owner=10001 --group=10001 /engines" in DOCKERFILE


def test_the_release_of_tensorrt_llm_is_named() -> None:
    (image,) = re.findall(r"^ARG TENSORRT_LLM_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"nvcr\.io/nvidia/tensorrt-llm/release:\d+\.\d+\.\d+\w*", image)


def _lock(name: str) -> str:
    return (DOCKER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_every_line_of_a_lock_has_hashes_and_no_registry(name: str) -> None:
    text = _lock(name)
    assert "://" not in text
    for entry in re.split(r"\n(?=[A-Za-z])", text.strip()):
        assert _PINNED.match(entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_the_lock_satisfies_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        canonicalize_name(name): version for name, version in _PINNED.findall(_lock("requirements.txt"))
    }
    for line in (*project["dependencies"], *project["optional-dependencies"]["otel"]):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": "3.13"}):
            continue
        version = pinned.get(canonicalize_name(requirement.name), "")
        assert requirement.specifier.contains(version, prereleases=True), f"{line}: run `make lock`"


def test_no_torch_in_the_image() -> None:
    names = {canonicalize_name(name) for name, _ in _PINNED.findall(_lock("requirements.txt"))}
    assert not names & {"torch", "triton", "tensorflow", "jax"}


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "engines", "service"} <= allowed
    assert not allowed & {".git", ".env", "secrets", "tests", "."}
    for path in allowed:
        assert (ROOT / path).exists(), path


class _Probes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/live" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def health_port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Probes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def _health_check(*arguments: str, **variables: str) -> int:
    command = [sys.executable, str(DOCKER / "healthcheck.py"), *arguments]
    return subprocess.run(command, env=variables, check=False, capture_output=True, timeout=30).returncode


def test_health_check(health_port: int) -> None:
    assert _health_check("live", NYBBLE_HEALTH_PORT=str(health_port)) == 0
    assert _health_check("live", NYBBLE_PORT=str(health_port - 1)) == 0
    assert _health_check(NYBBLE_HEALTH_PORT=str(health_port)) == 1
    assert _health_check("live", NYBBLE_HEALTH_PORT="1") == 1


def test_the_sbom_gets_the_packages_of_the_system(tmp_path: Path) -> None:
    tool("dpkg-query")
    document = tmp_path / "sbom.json"
    document.write_text(json.dumps({"components": [{"name": "numpy"}]}), encoding="utf-8")
    subprocess.run([sys.executable, DOCKER / "system_packages_sbom.py", document], check=True)
    components = {
        component["name"]: component for component in json.loads(document.read_text())["components"]
    }
    assert "numpy" in components
    assert components["libc6"]["purl"].startswith("pkg:deb/debian/libc6@")
