"""What the rendered pods may do: nobody is root, everything is limited, the network is closed."""

from __future__ import annotations

import pytest

from tests.support.shipping import (
    VALUES,
    containers,
    environment,
    manifests,
    of_kind,
    pod_labels,
    pod_specs,
    serving_pod,
)


@pytest.mark.parametrize("name", VALUES)
def test_no_pod_is_root_or_can_become_it(name: str) -> None:
    for spec in pod_specs(manifests(name)).values():
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not spec.get("hostNetwork")
        assert not spec.get("hostPID")
        for container in containers(spec):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["privileged"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", VALUES)
def test_the_root_is_read_only_on_cpus(name: str) -> None:
    expected = name in ("cpu", "hardened")
    for role, spec in pod_specs(manifests(name)).items():
        for container in containers(spec):
            read_only = container["securityContext"]["readOnlyRootFilesystem"]
            assert read_only is (expected or role == "test" or container["name"] == "fetch")
        if expected and role != "test":
            assert "/tmp" in {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}


def test_the_root_can_be_read_only_on_gpus_too() -> None:
    pod = serving_pod(manifests("gb10", "readOnlyRootFilesystem=true"))
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"/tmp", "/home/nybble", "/dev/shm"} <= {
        m["mountPath"] for m in pod["containers"][0]["volumeMounts"]
    }


@pytest.mark.parametrize("name", VALUES)
def test_every_container_is_limited(name: str) -> None:
    for spec in pod_specs(manifests(name)).values():
        for container in containers(spec):
            for side in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][side])


@pytest.mark.parametrize("name", VALUES)
def test_probes_are_on_the_health_port(name: str) -> None:
    container = serving_pod(manifests(name))["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports["health"]) == environment(container)["NYBBLE_HEALTH_PORT"]
    assert str(ports["http"]) == environment(container)["NYBBLE_PORT"]
    for probe, path in (("startup", "startup"), ("readiness", "ready"), ("liveness", "live")):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": f"/health/{path}", "port": "health"}


@pytest.mark.parametrize("name", VALUES)
def test_the_end_has_time_for_the_drain(name: str) -> None:
    spec = serving_pod(manifests(name))
    container = spec["containers"][0]
    drain = int(environment(container)["NYBBLE_DRAIN_TIMEOUT_SECONDS"])
    delay = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert delay > 0
    # After the drain TensorRT-LLM may take 30 s and the process 20 s (docs/tensorrt-llm.md).
    assert spec["terminationGracePeriodSeconds"] >= delay + drain + (
        20 if name in ("cpu", "hardened") else 50
    )


@pytest.mark.parametrize("name", VALUES)
def test_the_network_is_closed_but_for_what_is_needed(name: str) -> None:
    documents = manifests(name)
    everything, serving = sorted(
        of_kind(documents, "NetworkPolicy"), key=lambda m: len(m["metadata"]["name"])
    )
    assert everything["spec"]["policyTypes"] == ["Ingress", "Egress"]
    selected = everything["spec"]["podSelector"]["matchLabels"]
    for spec_labels in pod_labels(documents):
        assert selected.items() <= spec_labels.items()
    own_pods = {"podSelector": {"matchLabels": selected}}
    several = name == "multi-node"
    assert everything["spec"]["ingress"] == ([{"from": [own_pods]}] if several else [])
    # Out: names and the ranks of the group, the collector, the object store. Nowhere else.
    out = [rule for rule in everything["spec"]["egress"] if rule.get("to") != [own_pods]]
    assert len(everything["spec"]["egress"]) - len(out) == int(several)
    assert all(rule["ports"] for rule in out)
    ports = {port["port"] for rule in out for port in rule["ports"]}
    expected = {"cpu": set(), "gb10": set(), "gb200": {53, 4318}, "multi-node": {53}, "hardened": {53, 9000}}
    assert ports == expected[name]
    for rule in serving["spec"]["ingress"]:
        assert rule["from"]
        assert {port["port"] for port in rule["ports"]} <= {"http", "health"}
    reached_by = {
        port["port"]: rule["from"] for rule in serving["spec"]["ingress"] for port in rule["ports"][:1]
    }
    assert "monitoring" in str(reached_by["health"])


@pytest.mark.parametrize("name", VALUES)
def test_only_the_pods_that_serve_are_behind_the_service(name: str) -> None:
    documents = manifests(name)
    for service in of_kind(documents, "Service"):
        assert service["spec"]["selector"]["app.kubernetes.io/component"] == "serve"
        assert service["spec"]["type"] == "ClusterIP"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "serve"


@pytest.mark.parametrize("name", ["hardened", "gb200"])
def test_only_the_api_is_reachable_from_outside(name: str) -> None:
    for ingress in of_kind(manifests(name), "Ingress"):
        assert [path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]] == [
            "/v1"
        ]
        assert ingress["spec"]["tls"]
    for route in of_kind(manifests(name), "HTTPRoute"):
        assert [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]] == [
            "/v1"
        ]


@pytest.mark.parametrize("name", ["gb10", "gb200", "multi-node"])
def test_gpus_are_chosen_by_their_capability(name: str) -> None:
    major, minor = ("12", "1") if name == "gb10" else ("10", "0")
    for role, spec in pod_specs(manifests(name)).items():
        if role == "test":
            continue
        (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        wanted = {entry["key"].rpartition(".")[2]: entry["values"] for entry in term["matchExpressions"]}
        assert wanted == {"major": [major], "minor": [minor]}


def test_keys_come_from_the_secret_and_are_read_only() -> None:
    spec = serving_pod(manifests("hardened"))
    (container,) = spec["containers"]
    folder = environment(container)["NYBBLE_API_KEY_FILE"].rpartition("/")[0]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    assert mount["readOnly"] is True
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "nybble-keys"
    assert "NYBBLE_INSECURE_NO_AUTH" not in environment(container)


@pytest.mark.parametrize("name", ["cpu", "gb200", "multi-node", "hardened"])
def test_the_monitor_finds_the_health_service_and_no_other(name: str) -> None:
    documents = manifests(name)
    (monitor,) = of_kind(documents, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [one for one in of_kind(documents, "Service") if wanted <= one["metadata"]["labels"].items()]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert endpoint["path"] == "/metrics"
