"""The feed-forward half of a layer: a gated MLP, or a mixture of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.cpu import kernels
from engines.cpu.linear import Linear
from engines.cpu.workspace import Workspace

Float32Array = NDArray[np.float32]


class FeedForward(Protocol):
    """x and out: float32 [num_rows, hidden_size]."""

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None: ...


class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up in one product (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        num_rows = x.shape[0]
        gate_up = workspace.array("gate_up", (num_rows, self.gate_up.num_rows))
        self.gate_up(x, gate_up, workspace)
        activated = workspace.array("activated", (num_rows, self.gate_up.num_rows // 2))
        kernels.silu_mul(gate_up, activated)
        self.down(activated, out, workspace)


class MixtureOfExperts:
    """Each row goes to its `num_experts_per_token` likeliest experts (Mixtral, arXiv 2401.04088).

    Rows are grouped by expert, and experts without rows do no work. Contributions are added in
    ascending order of expert, so that a row's sum does not depend on the rest of the batch.
    """

    def __init__(self, router: Linear, experts: Sequence[GatedMlp], num_experts_per_token: int) -> None:
        self.router = router
        self.experts = tuple(experts)
        self.num_experts_per_token = num_experts_per_token

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        logits = workspace.array("router_logits", (x.shape[0], len(self.experts)))
        self.router(x, logits, workspace)
        expert_ids, weights = kernels.route_top_k(logits, self.num_experts_per_token)
        out.fill(0.0)
        for expert_id in np.unique(expert_ids):
            rows, choices = np.nonzero(expert_ids == expert_id)
            rows = rows.astype(np.int64)
            gathered = workspace.array("expert_in", (rows.size, x.shape[1]))
            kernels.gather_rows(x, rows, gathered)
            expert_out = workspace.array("expert_out", (rows.size, x.shape[1]))
            self.experts[int(expert_id)](gathered, expert_out, workspace)
            kernels.scatter_add_rows(expert_out, rows, weights[rows, choices], out)
