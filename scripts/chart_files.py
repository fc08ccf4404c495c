"""Write what the Helm chart takes from elsewhere in the project: `make chart-files`.

files/devices.json has the numbers of `nybble plan`; the alert rules and the dashboard are copies, because a
chart cannot read outside of its folder. Tests fail when they are out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

from engines.capacity.ceilings import CPU_KV_CACHE_SHARE
from engines.capacity.devices import GPU_RUNTIME_BYTES, GPUS, HOST_BYTES, KV_CACHE_SHARE

ROOT = Path(__file__).parents[1]
FILES = ROOT / "deploy/helm/nybble/files"
COPIES = {
    "nybble.rules.yml": "deploy/prometheus/nybble.rules.yml",
    "dashboard.json": "deploy/grafana/nybble.json",
}


def devices_document() -> str:
    """The devices and reserves as JSON; shares in thousandths, for Helm reckons in whole numbers."""
    devices = {
        gpu.name: {"memoryBytes": gpu.memory_bytes, "sm": gpu.sm, "unifiedMemory": gpu.unified_memory}
        for gpu in GPUS
    }
    devices["cpu"] = {"memoryBytes": 0, "sm": 0, "unifiedMemory": True}
    document = {
        "gpuRuntimeBytes": GPU_RUNTIME_BYTES,
        "hostBytes": HOST_BYTES,
        "kvCachePermille": round(1000 * KV_CACHE_SHARE),
        "cpuKvCachePermille": round(1000 * CPU_KV_CACHE_SHARE),
        "devices": devices,
    }
    return json.dumps(document, indent=2) + "\n"


def chart_files() -> dict[str, str]:
    """Name and content of each generated file."""
    copies = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in COPIES.items()}
    return {"devices.json": devices_document(), **copies}


if __name__ == "__main__":
    for file_name, content in chart_files().items():
        (FILES / file_name).write_text(content, encoding="utf-8")
