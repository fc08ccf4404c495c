"""Random modelopt NVFP4 checkpoints: fused layers share a weight scale, widths fit the tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.checkpoint.checkpoint import Checkpoint
from tests.support.checkpoint_edits import Tensors, edit_tensors
from tests.support.random_checkpoint import RandomCheckpoint

WIDE: dict[str, Any] = {
    "layout": "modelopt",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "num_layers": 1,
}


def mistral(directory: Path, **changes: Any) -> Checkpoint:
    """A dense model in `directory`/source that can be split over 1, 2 and 4 ranks."""
    source = RandomCheckpoint(**{**WIDE, **changes}).write(directory / "source")
    if {**WIDE, **changes}["layout"] == "modelopt":
        edit_tensors(source, share_weight_scales)
    return Checkpoint.open(source)


def mixtral(directory: Path, **changes: Any) -> Checkpoint:
    """The same with three experts."""
    return mistral(directory, **{"architecture": "MixtralForCausalLM", "num_experts": 3, **changes})


def share_weight_scales(tensors: Tensors) -> None:
    """Give layers that are fused one weight_scale_2, as modelopt's export does."""
    for name in list(tensors):
        if name.endswith((".k_proj.weight_scale_2", ".v_proj.weight_scale_2")):
            tensors[name] = tensors[name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")]
        elif name.endswith(".up_proj.weight_scale_2"):
            tensors[name] = tensors[name.replace("up_proj", "gate_proj")]
        elif name.endswith(".w1.weight_scale_2"):
            tensors[name] = tensors[name.replace("w1", "w3")]
