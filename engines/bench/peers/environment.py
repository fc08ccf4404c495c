"""Environment variables under which a peer is at its best, and is measured at all."""

from __future__ import annotations

from collections.abc import Mapping

from engines.bench.peers.system import Limits

_KV_CACHE_GIGABYTES = "2"


def worker_environment(own: Mapping[str, str], family: str, limits: Limits) -> dict[str, str]:
    """`own` without settings of Nybble and OpenMP; threads counted and bound for `family`."""
    kept = {
        name: value
        for name, value in own.items()
        if not name.startswith(("NYBBLE_", "OMP_", "KMP_", "GOMP_", "VLLM_", "PYTHON"))
    }
    bound = {
        "OMP_NUM_THREADS": str(limits.num_threads),
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": ",".join(f"{{{core}}}" for core in limits.cores),
    }
    no_network = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if family == "vLLM":  # binds its threads itself
        return kept | no_network | {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, limits.cores)),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIGABYTES,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }  # fmt: skip
    if family in ("llama.cpp", "Transformers"):
        return kept | no_network | bound
    return kept | no_network
