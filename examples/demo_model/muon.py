"""Optimizers of the training: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al., 2024) applies momentum and then replaces the update of a matrix by the nearest
semi-orthogonal one, found with a few Newton-Schulz steps. It needs fewer tokens than AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen by its author for a steep start
_NUM_ITERATIONS = 5


class Muon:
    """Momentum with orthogonalised updates; matrices of one shape are treated as a batch."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95) -> None:
        self._groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self._groups[tuple(parameter.shape)].append(parameter)
        self._momentum = momentum
        self._buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, weight_decay: float) -> None:
        """Update all parameters from their gradients and clear these."""
        for shape, group in self._groups.items():
            gradients = torch.stack(
                [torch.zeros(shape) if parameter.grad is None else parameter.grad for parameter in group]
            )
            buffer = self._buffers[shape]
            buffer.lerp_(gradients, 1 - self._momentum)
            updates = orthogonalized(gradients.lerp(buffer, self._momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(group, updates, strict=True):
                parameter.mul_(1 - learning_rate * weight_decay)
                parameter.add_(update, alpha=-learning_rate * scale)
                parameter.grad = None


def orthogonalized(matrices: Tensor) -> Tensor:
    """float32 [batch, rows, columns] -> matrices with the same singular vectors and values near 1."""
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


def optimizers(model: nn.Module) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers (router gates excepted), AdamW for the rest."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name and parameter.ndim == 2 and not name.endswith("gate.weight")
        (matrices if inside else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    return Muon(matrices), adamw
