"""Our own figures of a comparison beside what the machine allows, as `nybble bench` shows them."""

from __future__ import annotations

from engines.bench.limits import measured_device, phases
from engines.bench.offline import OfflineRates
from engines.bench.peers.comparison import SystemResult, measurements
from engines.bench.phase import Phase, Workload
from engines.capacity.cpu_device import cpu_device
from engines.capacity.model_cost import greedy_cost, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.machine_limits import MachineLimits


def own_phases(result: SystemResult, machine: MachineLimits, workload: Workload) -> tuple[Phase, ...]:
    """Every measurement of a Nybble that took part, and its ceiling on `machine`."""
    prefill, *decodes = measurements(workload)
    rates = OfflineRates(
        prefill=tuple(result.runs[prefill.name]),
        decode={each.num_streams: tuple(result.runs[each.name]) for each in decodes},
    )
    cost = greedy_cost(model_cost(Checkpoint.open(result.system.model), as_nvfp4=False, as_read=True))
    return phases(cost, measured_device(cpu_device(), machine), workload, rates)
