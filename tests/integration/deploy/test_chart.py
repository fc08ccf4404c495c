"""The Helm chart by a real Helm: every values file renders, and into what Kubernetes takes."""

from __future__ import annotations

import json

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.crd_schemas import CRD_SCHEMAS
from tests.support.shipping import CHART, VALUES, Manifest, manifests, pod_specs, run, template, tool

KUBERNETES = "1.33"


def test_the_values_files_are_those_promised() -> None:
    assert set(VALUES) == {"cpu", "gb10", "gb200", "multi-node", "hardened"}


@pytest.mark.parametrize("name", VALUES)
def test_lint(name: str) -> None:
    done = run(tool("helm"), "lint", "--strict", CHART, "--values", VALUES[name])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_takes_every_manifest(name: str) -> None:
    for manifest in manifests(name):
        if manifest["kind"] in CRD_SCHEMAS:
            jsonschema.validate(manifest, CRD_SCHEMAS[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_pods_of_a_leader_worker_set_are_pods() -> None:
    for role, spec in pod_specs(manifests("multi-node")).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", CRD_SCHEMAS)
def test_the_schemas_refuse_a_misspelt_field(kind: str) -> None:
    (manifest,) = [m for name in ("gb200", "multi-node") for m in manifests(name) if m["kind"] == kind][:1]
    broken: Manifest = json.loads(json.dumps(manifest))
    broken["spec"]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(broken, CRD_SCHEMAS[kind])


def test_every_kind_of_resource_is_rendered_by_some_values_file() -> None:
    kinds = {manifest["kind"] for name in VALUES for manifest in manifests(name)}
    assert kinds >= {
        *(
            "Deployment",
            "LeaderWorkerSet",
            "Job",
            "PersistentVolumeClaim",
            "Service",
            "ServiceAccount",
            "ConfigMap",
        ),
        *(
            "PodDisruptionBudget",
            "HorizontalPodAutoscaler",
            "ScaledObject",
            "ServiceMonitor",
            "PrometheusRule",
        ),
        *("NetworkPolicy", "Ingress", "HTTPRoute", "InferencePool", "Pod"),
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cpu", ["engine=trtllm"], "engine trtllm does not run on device cpu"),
        ("cpu", ["auth.insecureNoAuth=false"], "give existingSecret"),
        ("hardened", ["auth.insecureNoAuth=true"], "not both"),
        ("cpu", ["model.weightBytes=3000000000"], "the KV cache holds 0 tokens"),
        ("gb10", ["model.contextTokens=1000000"], "take more or larger devices"),
        ("gb10", ["replicas=2"], "ReadWriteMany is needed"),
        ("gb10", ["build.numGpus=1"], "build.storage.existingClaim"),
        ("gb10", ["model.source.path="], "model.source.path is missing"),
        ("gb10", ["model.source.type=demo"], "cpu image only"),
        ("multi-node", ["parallel.sshSecret="], "parallel.sshSecret is missing"),
        ("multi-node", ["parallel.numNodes=3"], "cannot be shared out evenly over 3 nodes"),
        ("cpu", ["resources.memory=lots"], "resources.memory"),
        ("cpu", ["modle.names=x"], "modle"),
        ("cpu", ["podSecurityContext.runAsUser=0"], "runAsUser"),
    ],
)
def test_mistakes_are_refused_with_a_reason(name: str, settings: list[str], message: str) -> None:
    done = template("--values", VALUES[name], *[part for s in settings for part in ("--set", s)])
    assert done.returncode != 0
    assert message in done.stderr


def test_other_inputs_of_a_build_are_another_folder() -> None:
    def folder(*settings: str) -> str:
        arguments = pod_specs(manifests("gb10", *settings))["Job"]["containers"][0]["args"]
        return str(arguments[2])

    first = folder()
    assert folder("service.port=81") == first
    for change in (
        "image.tag=other",
        "model.contextTokens=16384",
        "settings.maxNumSeqs=8",
        "model.source.path=/other",
    ):
        assert folder(change) != first


def test_the_pods_wait_for_the_build_they_serve() -> None:
    specs = pod_specs(manifests("gb10"))
    folder = specs["Job"]["containers"][0]["args"][2]
    (waiting,) = specs["Deployment"]["initContainers"]
    assert waiting["command"][-1] == f"{folder}/build_manifest.json"
    assert specs["Deployment"]["containers"][0]["args"][1] == folder


def test_a_build_with_gpus_comes_before_the_pods_that_would_hold_them() -> None:
    settings = ("build.numGpus=1", "build.storage.existingClaim=engines")
    (job,) = [m for m in manifests("gb10", *settings) if m["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "--path=auto" in container["args"]
    # Without one only what needs none can be made.
    (container,) = pod_specs(manifests("gb10"))["Job"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "--path=pytorch" in container["args"]


def test_notes_name_the_size_and_the_way_to_ask() -> None:
    text = (CHART / "templates/NOTES.txt").read_text(encoding="utf-8")
    assert "/health/startup" in text
    assert "helm test" in text


def test_alert_rules_point_to_the_runbook_given() -> None:
    (rule,) = [m for m in manifests("gb200") if m["kind"] == "PrometheusRule"]
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].startswith("https://example.com/nybble/docs/runbook.md#")


def test_the_default_values_need_a_decision_about_keys_only() -> None:
    assert template().returncode != 0
    done = template("--set", "auth.insecureNoAuth=true")
    assert done.returncode == 0, done.stderr
    assert {m["kind"] for m in yaml.safe_load_all(done.stdout) if m} >= {"Deployment", "NetworkPolicy"}
