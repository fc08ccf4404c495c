"""The chart reckons as `nybble plan` does: the same devices, the same KV cache, the same bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml

from engines.capacity.ceilings import kv_cache_bytes
from engines.capacity.cpu_device import cpu_device
from engines.capacity.devices import GPU_RUNTIME_BYTES, HOST_BYTES, Device, gpu_named
from engines.capacity.model_cost import LayerCost, ModelCost, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from scripts.chart_files import FILES, chart_files
from tests.support.shipping import (
    CHART,
    ROOT,
    VALUES,
    Manifest,
    environment,
    manifests,
    of_kind,
    serving_pod,
    values,
)

GIB = 1024**3
SHAPES = [("gb10", 1, 1), ("rtx6000-blackwell", 2, 1), ("b200", 8, 1), ("gb200", 4, 2)]


def _cost(weight_bytes: int) -> ModelCost:
    return ModelCost(LayerCost(weight_bytes), LayerCost(), LayerCost(), 0, 0, 0, 32, 32, 8, 128, 32768)


def _settings(device: str, tensor: int, nodes: int, weight_bytes: int) -> tuple[str, ...]:
    pipeline = nodes
    return (
        *(f"device={device}", f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}"),
        *(f"parallel.numNodes={nodes}", "parallel.sshSecret=ssh", f"model.weightBytes={weight_bytes}"),
        "build.enabled=false",
    )


def _pod_template(documents: tuple[Manifest, ...]) -> Manifest:
    for document in documents:
        if document["kind"] == "Deployment":
            return dict(document["spec"]["template"])
        if document["kind"] == "LeaderWorkerSet":
            return dict(document["spec"]["leaderWorkerTemplate"]["leaderTemplate"])
    raise AssertionError("no pod")


@pytest.mark.parametrize("name", sorted(chart_files()))
def test_the_charts_files_are_up_to_date(name: str) -> None:
    assert (FILES / name).read_text(encoding="utf-8") == chart_files()[name], "run `make chart-files`"


@pytest.mark.parametrize(("device", "tensor", "nodes"), SHAPES)
@pytest.mark.parametrize("weight_bytes", [4_463_000_001, 26_649_042_944])
def test_kv_cache_on_gpus(device: str, tensor: int, nodes: int, weight_bytes: int) -> None:
    template = _pod_template(manifests("gb10", *_settings(device, tensor, nodes, weight_bytes)))
    expected = kv_cache_bytes(_cost(weight_bytes), gpu_named(device), tensor * nodes)
    assert template["metadata"]["annotations"]["nybble/kv-cache-bytes"] == str(expected)


@pytest.mark.parametrize(
    ("memory", "num_bytes"), [("4Gi", 4 * GIB), ("24Gi", 24 * GIB), ("9500M", 9_500_000_000)]
)
def test_kv_cache_on_cpus(memory: str, num_bytes: int) -> None:
    weight_bytes = values("cpu")["model"]["weightBytes"]
    (container,) = serving_pod(manifests("cpu", f"resources.memory={memory}"))["containers"]
    device: Device = replace(cpu_device(), memory_bytes=num_bytes)
    expected = kv_cache_bytes(_cost(weight_bytes), device, 1)
    assert environment(container)["NYBBLE_KV_CACHE_MEMORY_BYTES"] == str(expected)
    assert container["resources"]["limits"]["memory"] == str(num_bytes)


@pytest.mark.parametrize("name", VALUES)
def test_the_start_up_probe_allows_for_reading_the_checkpoint(name: str) -> None:
    documents = manifests(name)
    (container,) = serving_pod(documents)["containers"]
    probe = container["startupProbe"]
    allowed = probe["periodSeconds"] * probe["failureThreshold"]
    weight_bytes = values(name)["model"]["weightBytes"]
    nodes = 2 if name == "multi-node" else 1
    fixed = 60 if name in ("cpu", "hardened") else 900
    seconds = fixed + math.ceil(weight_bytes // nodes / 200_000_000)
    assert allowed == 10 * math.ceil(seconds / 10)
    assert _pod_template(documents)["metadata"]["annotations"]["nybble/start-seconds"] == str(seconds)


def test_a_slower_store_has_more_time() -> None:
    slow = manifests("gb10", "probes.startup.readBytesPerSecond=10000000")
    probe = serving_pod(slow)["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 900 + 26649042944 / 10_000_000


def test_memory_on_unified_memory_leaves_the_operating_systems_part() -> None:
    (container,) = serving_pod(manifests("gb10"))["containers"]
    resources = container["resources"]
    assert int(resources["limits"]["memory"]) == gpu_named("gb10").memory_bytes - HOST_BYTES
    assert int(resources["requests"]["memory"]) == 26649042944 + GPU_RUNTIME_BYTES + 131072 * 32768


def test_memory_beside_a_gpu_with_its_own() -> None:
    (container,) = serving_pod(manifests("gb200"))["containers"]
    assert int(container["resources"]["limits"]["memory"]) == HOST_BYTES + 79681290240


def test_gpus_of_a_pod() -> None:
    for name, expected in (("gb10", 1), ("gb200", 2), ("multi-node", 4)):
        (container,) = serving_pod(manifests(name))["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == expected
        assert environment(container)["NYBBLE_GPUS_PER_NODE"] == str(expected)
    (group,) = of_kind(manifests("multi-node"), "LeaderWorkerSet")
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 2


def test_the_demos_numbers_are_the_plans() -> None:
    cost = model_cost(Checkpoint.open(ROOT / "examples/demo_model/checkpoints/mistral-mxfp4"), as_nvfp4=False)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for model in (defaults["model"], values("cpu")["model"]):
        assert model["weightBytes"] == cost.resident_bytes
        assert model["kvBytesPerToken"] == cost.kv_bytes_per_token("bfloat16")
        assert model["contextTokens"] == cost.max_position_embeddings
