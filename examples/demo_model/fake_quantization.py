"""FP4 rounding inside a PyTorch model, with gradients that pass straight through it.

The forward pass sees what a runtime would compute: weights and activations rounded to E2M1 codes under block
scales, exactly as `nybble quantize --method rtn` and the engine round them (check_fake_quantization.py
compares with `engines.fp4`). The backward pass takes rounding for the identity (Bengio et al.,
arXiv 1308.3432).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMATS = ("mxfp4", "nvfp4")
MXFP4_GROUP_SIZE, NVFP4_GROUP_SIZE = 32, 16

_LARGEST_CODE, _LARGEST_SCALE, _SMALLEST_SCALE = 6.0, 448.0, 2.0**-9
_QUARTER, _EXPONENT_SHIFT, _CODE_EXPONENT = 1 << 21, 23, 2


def round_to_codes(x: Tensor) -> Tensor:
    """float32 in units of the block scale -> the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to even."""
    magnitude = x.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return (torch.round(x / step) * step).clamp(-_LARGEST_CODE, _LARGEST_CODE)


def round_mxfp4(x: Tensor) -> Tensor:
    """float32 [..., K] -> its MXFP4 values: blocks of 32 under compressed-tensors' power of two."""
    split = x.unflatten(-1, (-1, MXFP4_GROUP_SIZE))
    bits = split.abs().amax(dim=-1, keepdim=True).view(torch.int32) + _QUARTER
    exponent = ((bits >> _EXPONENT_SHIFT) - _CODE_EXPONENT).clamp(min=1)
    scale = (exponent << _EXPONENT_SHIFT).view(torch.float32)
    return (round_to_codes(split / scale) * scale).flatten(-2)


def round_nvfp4(x: Tensor, amax: Tensor) -> Tensor:
    """float32 [..., K] -> its NVFP4 values, modelopt's: blocks of 16 under E4M3 times amax / 2688."""
    factor = (amax / (_LARGEST_CODE * _LARGEST_SCALE)).clamp(min=torch.finfo(torch.float32).tiny)
    split = x.unflatten(-1, (-1, NVFP4_GROUP_SIZE))
    block_amax = split.abs().amax(dim=-1, keepdim=True)
    wanted = (block_amax / (_LARGEST_CODE * factor)).clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    scale = wanted.to(torch.float8_e4m3fn).to(torch.float32) * factor
    return (round_to_codes(split / scale) * scale).flatten(-2)


class Fp4Linear(nn.Module):
    """A linear layer whose weight, and whose input unless `weights_only`, are FP4 in the forward pass.

    `weight` is the trained float32 parameter; it is rounded to BF16 first, as the stored master is. `fused`
    are the weights (this one among them) that share one NVFP4 scale. The input's scale is that of the batch
    at hand, where a checkpoint has a static one: that matters only to blocks far below the maximum.
    """

    def __init__(self, weight: nn.Parameter, format: str) -> None:
        super().__init__()
        self.weight = weight
        self.format = format
        self.weights_only = False
        self.fused: tuple[nn.Parameter, ...] = (weight,)

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return functional.linear(x, self.weight)
        if not self.weights_only:
            x = _straight_through(x, _rounded(x.detach(), self.format, (x,)))
        return functional.linear(x, _straight_through(self.weight, self.fp4_weight()))

    @torch.no_grad()
    def fp4_weight(self) -> Tensor:
        """What the quantised file will hold, decoded."""
        return _rounded(self.weight.bfloat16().float(), self.format, self.fused)


_ROUNDING: dict[str, Callable[..., Tensor]] = {"mxfp4": round_mxfp4, "nvfp4": round_nvfp4}


def compile_rounding() -> None:
    """Let torch.compile fuse the rounding functions: the same values, about seven times as fast on a CPU."""
    for format, rounding in (("mxfp4", round_mxfp4), ("nvfp4", round_nvfp4)):
        _ROUNDING[format] = torch.compile(rounding, dynamic=True)


@torch.no_grad()
def _rounded(x: Tensor, format: str, sharing: Sequence[Tensor]) -> Tensor:
    """`x` in FP4; under NVFP4 the scale is that of all tensors in `sharing`."""
    if format == "mxfp4":
        return _ROUNDING[format](x)
    amax = torch.stack([tensor.abs().max() for tensor in sharing]).max()
    return _ROUNDING[format](x, amax.bfloat16().float())


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def quantize_in_place(model: nn.Module, format: str) -> list[Fp4Linear]:
    """Replace the linear layers inside the decoder, router gates excepted; parameters keep their names."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and not name.endswith(".gate")
    ]
    groups: dict[str, list[Fp4Linear]] = defaultdict(list)
    for name in names:
        parent, _, attribute = name.rpartition(".")
        layer = Fp4Linear(model.get_submodule(name).weight, format)
        setattr(model.get_submodule(parent), attribute, layer)
        groups[_fused_name(name)].append(layer)
    for group in groups.values():
        for layer in group:
            layer.fused = tuple(member.weight for member in group)
    return [layer for group in groups.values() for layer in group]


def _fused_name(module: str) -> str:
    """Servers compute q, k, v as one matrix, and gate and up (w1, w3): those share their scale."""
    return re.sub(r"\.(?:w[13]|(?:gate|up)_proj)$", ".gate_up", re.sub(r"\.[qkv]_proj$", ".qkv", module))
