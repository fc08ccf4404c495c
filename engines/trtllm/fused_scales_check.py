"""What the PyTorch backend asserts of layers it fuses, checked before it does."""

from __future__ import annotations

from collections.abc import Iterator

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import Fp4Tensors
from engines.trtllm.errors import BuildRefused


def require_equal_scales(checkpoint: Checkpoint) -> None:
    """q, k and v, and gate and up, share weight_scale_2 and input_scale; an expert's w1 and w3 the former.

    Raises BuildRefused naming the first group that does not, and layers without an input scale.
    """
    for names, experts in _groups(checkpoint):
        modules = [checkpoint.linear(name) for name in names]
        fp4 = [module for module in modules if isinstance(module, Fp4Tensors)]
        if len(fp4) not in (0, len(modules)):
            raise BuildRefused(f"{modules[0].name}: the layers fused with it are not stored alike")
        what = ["weight_scale_2"] if len({module.global_scale for module in fp4}) > 1 else []
        if not experts and len({module.input_scale for module in fp4}) > 1:
            what.append("input_scale")
        if what:
            raise BuildRefused(
                f"{', '.join(module.name for module in fp4)}: have unequal {' and '.join(what)}; "
                "TensorRT-LLM fuses these layers and refuses that. Export the checkpoint again with shared "
                "scales (modelopt does it), or quantise it with `nybble quantize`"
            )
    for module in checkpoint.modules():
        if isinstance(module, Fp4Tensors) and module.input_scale is None:
            raise BuildRefused(
                f"{module.name}: has no input scale, which TensorRT-LLM's NVFP4 layers need; make the "
                "checkpoint again with --calibration"
            )


def _groups(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], bool]]:
    config = checkpoint.config
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield tuple(f"{prefix}.self_attn.{name}_proj" for name in "qkv"), False
        if not config.num_experts:
            yield tuple(f"{prefix}.mlp.{name}_proj" for name in ("gate", "up")), False
        for expert in range(config.num_experts):
            names = (checkpoint.expert(layer, expert, part).name for part in ("gate", "up"))
            yield tuple(names), True
