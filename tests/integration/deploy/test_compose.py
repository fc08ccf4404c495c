"""docker-compose.yml as Compose reads it, for every profile."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from engines.capacity.devices import HOST_BYTES, gpu_named
from tests.support.shipping import ROOT, run, tool

PROFILES = {
    (): {"build", "serve"},
    ("cpu",): {"serve-cpu"},
    ("cpu", "observability"): {"serve-cpu", "prometheus", "grafana", "otel-collector"},
    ("spark", "observability"): {"build", "serve", "prometheus", "grafana", "otel-collector"},
}
GIB = 1024**3


def _configuration(*profiles: str, **variables: str) -> dict[str, Any]:
    """What `docker compose config` makes of the file."""
    flags = [part for profile in profiles for part in ("--profile", profile)]
    done = run(tool("docker-compose"), *flags, "config", "--format", "json", **variables)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """All services."""
    found: dict[str, Any] = _configuration("spark", "cpu", "observability")["services"]
    return found


@pytest.mark.parametrize("profiles", PROFILES, ids=lambda profiles: "+".join(profiles) or "none")
def test_services_of_a_profile(profiles: tuple[str, ...]) -> None:
    assert set(_configuration(*profiles)["services"]) == PROFILES[profiles]


def test_the_service_waits_for_a_build_that_succeeded(services: dict[str, Any]) -> None:
    assert services["serve"]["depends_on"]["build"]["condition"] == "service_completed_successfully"
    assert services["build"]["restart"] == "no"
    assert services["serve"]["restart"] == "unless-stopped"
    folder = services["serve"]["command"][1]
    assert services["build"]["command"][2] == folder
    volume = {mount["target"]: mount for mount in services["serve"]["volumes"]}
    assert folder.startswith("/engines/")
    assert volume["/engines"]["read_only"] is True


def test_dependencies_are_gated_by_health(services: dict[str, Any]) -> None:
    assert services["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"
    assert services["prometheus"]["healthcheck"]["test"]


def test_the_gpu_and_its_limits(services: dict[str, Any]) -> None:
    for name in ("build", "serve"):
        service = services[name]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"], device["count"]) == ("nvidia", ["gpu"], 1)
        assert service["ipc"] == "host"
        assert service["ulimits"] == {"memlock": -1, "stack": 67108864}


def test_the_memory_is_that_of_the_plan(services: dict[str, Any]) -> None:
    budget = (gpu_named("gb10").memory_bytes - HOST_BYTES) // GIB * GIB
    assert int(services["serve"]["deploy"]["resources"]["limits"]["memory"]) == budget


def test_keys_are_a_secret_of_the_gpu_service_only(services: dict[str, Any]) -> None:
    configuration = _configuration(NYBBLE_API_KEYS="/somewhere/keys")
    assert configuration["secrets"]["api-keys"]["file"] == "/somewhere/keys"
    (secret,) = services["serve"]["secrets"]
    assert services["serve"]["environment"]["NYBBLE_API_KEY_FILE"] == f"/run/secrets/{secret['source']}"
    assert [name for name, service in services.items() if service.get("secrets")] == ["serve"]


def test_without_keys_only_this_machine_is_served(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name != "serve":
            assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
    assert "--insecure-no-auth" not in services["serve"]["command"]


def test_the_health_port_is_not_published(services: dict[str, Any]) -> None:
    published = {port["target"] for name in ("serve", "serve-cpu") for port in services[name]["ports"]}
    assert published == {8000}


def test_containers_may_do_nothing_special(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
    assert services["serve-cpu"]["read_only"] is True
    assert services["build"]["network_mode"] == "none"


def test_the_end_is_long_enough_for_the_drain(services: dict[str, Any]) -> None:
    for name, after in (("serve", 50), ("serve-cpu", 20)):
        drain = int(services[name]["environment"]["NYBBLE_DRAIN_TIMEOUT_SECONDS"])
        minutes, _, seconds = services[name]["stop_grace_period"].rpartition("m")
        assert 60 * int(minutes or 0) + int(seconds.rstrip("s")) >= drain + after


def test_images_of_others_are_pinned(services: dict[str, Any]) -> None:
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert tag not in ("", "latest")


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in service.get("volumes", []):
            assert mount["type"] == "volume" or (ROOT / mount["source"]).exists(), mount


def test_prometheus_scrapes_the_health_port_and_loads_the_rules() -> None:
    configuration = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = configuration["scrape_configs"]
    assert job["dns_sd_configs"][0]["port"] == 8001
    assert set(job["dns_sd_configs"][0]["names"]) == {"serve", "serve-cpu"}
    assert configuration["rule_files"] == ["/etc/prometheus/rules/nybble.rules.yml"]
    checked = run(tool("promtool"), "check", "config", "--syntax-only", "deploy/compose/prometheus.yml")
    assert checked.returncode == 0, checked.stderr


def test_every_variable_is_explained() -> None:
    page = (ROOT / "deploy/compose/README.md").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    names = set(re.findall(r"\$\{(\w+)", text)) | set(
        re.findall(r"^ +(NYBBLE_\w+):(?: #.*)?$", text, re.MULTILINE)
    )
    assert {"NYBBLE_CHECKPOINT", "NYBBLE_OTLP_ENDPOINT"} <= names
    for name in names:
        assert f"`{name}`" in page
