"""The ceilings of a model's phases, from what this machine's memory and matrix unit did in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from engines.bench.offline import OfflineRates
from engines.bench.phase import Phase, Workload, median
from engines.capacity.ceilings import decode_ceiling, prefill_ceiling
from engines.capacity.devices import Device
from engines.capacity.model_cost import ModelCost
from engines.cpu.machine_limits import MachineLimits

_KV_DTYPE = "bfloat16"


def measured_device(device: Device, machine: MachineLimits) -> Device:
    """`device` with the measured rates: FP4 products at best run at the highest of them, others in float."""
    floats = (machine.float32_fma_operations_per_second, machine.amx_bfloat16_operations_per_second)
    return replace(
        device,
        bandwidth=machine.read_bytes_per_second,
        fp4_flops=machine.best_operations_per_second,
        bf16_flops=max(rate for rate in floats if rate is not None),
    )


def best_limits(first: MachineLimits, second: MachineLimits) -> MachineLimits:
    """Figure by figure the better of two measurements: a neighbour can only lower one."""
    after = asdict(second)
    better = {
        name: max(value, after[name])
        for name, value in asdict(first).items()
        if isinstance(value, float) and isinstance(after[name], float)
    }
    return replace(first, **better)


def phases(cost: ModelCost, machine: Device, workload: Workload, rates: OfflineRates) -> tuple[Phase, ...]:
    """Each measured phase beside its ceiling on `machine` (docs/capacity.md)."""
    kv_bytes = cost.kv_bytes_per_token(_KV_DTYPE)
    prefill = prefill_ceiling(cost, machine, workload.num_prefill_tokens, kv_bytes)
    found = [
        _phase(
            f"prefill {workload.num_prefill_tokens}",
            1,
            rates.prefill,
            prefill.tokens_per_second,
            prefill.bound,
        )
    ]
    context = workload.num_prompt_tokens + workload.num_decode_tokens // 2
    for size, runs in _by_size(rates.decode):
        ceiling = decode_ceiling(cost, machine, size, context, kv_bytes, size * workload.longest)
        found.append(_phase(f"decode, {size} streams", size, runs, ceiling.tokens_per_second, ceiling.bound))
    return tuple(found)


def _by_size(decode: Mapping[int, Sequence[float]]) -> list[tuple[int, Sequence[float]]]:
    return sorted(decode.items())


def _phase(name: str, num_streams: int, runs: Sequence[float], limit: float, bound: str) -> Phase:
    return Phase(name.replace("1 streams", "1 stream"), num_streams, median(runs), tuple(runs), limit, bound)
