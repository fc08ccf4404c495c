"""The comparison of one model, in one or two FP4 formats, with the peers: prepare, measure in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from engines.bench.peers.catalogue import Choice, prepared_systems
from engines.bench.peers.comparison import Comparison, SystemResult
from engines.bench.peers.cores import physical_cores
from engines.bench.peers.system import Limits
from engines.bench.phase import OnProgress, Workload
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu import kernels


def compare_with_peers(
    directories: Sequence[Path],
    choice: Choice,
    workload: Workload,
    *,
    num_threads: int,
    on_progress: OnProgress,
    time_limit_seconds: float = math.inf,
) -> list[SystemResult]:
    """Every system's rates, or why it was skipped.

    `num_threads` 0 means all physical cores; the time limit is that of the rounds, not of converting.

    Raises CheckpointError and InvalidRequest for what concerns the checkpoints and options themselves.
    """
    threads = num_threads or kernels.num_threads()
    limits = Limits(
        num_threads=threads,
        cores=physical_cores(threads),
        max_num_seqs=max(workload.concurrencies),
        max_model_len=workload.longest,
        vocab_size=Checkpoint.open(directories[0]).config.vocab_size,
    )
    results = prepared_systems(directories, choice, on_progress)
    comparison = Comparison(results, limits, workload, on_progress, time_limit_seconds=time_limit_seconds)
    return comparison.run()
