"""The static scales of NVFP4 activations: observed in calibration, or taken over from the source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.convert.errors import ConversionError, NoInputScales
from engines.convert.global_scale import reciprocal
from engines.convert.options import Target
from engines.cpu.linear import Linear, LinearOptions, build_linear
from engines.evaluate.logits import SequenceModel
from engines.fp4 import bfloat16
from engines.fp4.nvfp4 import Convention, global_scale_compressed_tensors
from engines.quantize.observation import ObservedLinear

_EXPERT = re.compile(r"(?P<layer>.*\.experts)\.\d+\.(?P<part>\w+)")
_LARGEST = np.float32(448 * 6)  # the largest product of a block scale and a code


def observe_input_maxima(
    checkpoint: Checkpoint,
    samples: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """The largest magnitude each FP4 module reads over `samples` (token ids), by module name.

    The checkpoint's own forward pass with its FP4 weights and unquantised activations, as the libraries
    calibrate. All experts of a layer share one maximum per projection, as modelopt 0.47 has it and servers
    assume; so an expert that no token reaches has one too. `progress` gets the number of tokens done.
    Raises ConversionError when a maximum is 0 or not finite, and CheckpointError.
    """
    maxima: dict[str, float] = {}

    def build(modules: Sequence[Fp4Tensors | DenseTensors], options: LinearOptions) -> Linear:
        keys = {_shared_key(module.name) for module in modules if isinstance(module, Fp4Tensors)}

        def record(x: NDArray[np.float32]) -> None:
            amax = float(np.abs(x).max(initial=np.float32(0)))
            for key in keys:
                # written so that NaN stays
                maxima[key] = amax if not amax <= maxima.get(key, 0.0) else maxima[key]

        linear = build_linear(modules, options)
        return ObservedLinear(linear, record) if keys else linear

    longest = max(map(len, samples))
    model = SequenceModel.load(checkpoint, longest, activations="bf16", numerics="reference", build=build)
    head_is_fp4 = isinstance(checkpoint.linear("lm_head"), Fp4Tensors)
    for sample in samples:
        if head_is_fp4:
            for _ in model.logits(sample):
                pass
        else:
            model.run(sample)
        progress(len(sample))
    return {
        module.name: _require_usable(module.name, maxima.get(_shared_key(module.name), 0.0))
        for module in checkpoint.modules()
        if isinstance(module, Fp4Tensors)
    }


def stored_input_scale(amax: float, target: Target, *, bfloat16_model: bool) -> float:
    """What the target's library stores for a calibrated maximum (fp4-formats sections 3 and 4).

    A library observes activations in the model's dtype, so the maximum of a bfloat16 model is rounded to it.
    """
    if bfloat16_model:
        amax = float(bfloat16.round_trip(np.array([amax], np.float32))[0])
    if target.convention is Convention.MODELOPT:
        return float(np.float32(amax) / _LARGEST)
    return global_scale_compressed_tensors(np.array([amax], np.float32), bfloat16_model=bfloat16_model)


def carried_input_scale(module: Fp4Tensors, target: Target) -> float:
    """The module's own input scale in the target's convention, the nearest float32 reciprocal.

    Raises NoInputScales when it has none.
    """
    if module.input_scale is None:
        why = (
            "MXFP4 needs no input scales and stores none"
            if module.format == "mxfp4"
            else "the source has no input scale for it"
        )
        weight_only = " or --weight-only to leave activations unquantised"
        raise NoInputScales(
            f"{module.name}: {why}, and NVFP4 activations need them; pass --calibration FILE.jsonl (lines "
            f"with text, messages or input_ids)"
            f"{weight_only if target is Target.NVFP4_COMPRESSED_TENSORS else ''}"
        )
    same = module.convention == target.convention.value
    return module.input_scale if same else reciprocal(module.input_scale)


def _shared_key(name: str) -> str:
    """The same for all experts' projections that have one maximum; gate and up read the same."""
    expert = _EXPERT.fullmatch(name)
    return name if expert is None else f"{expert['layer']}.{expert['part']}"


def _require_usable(name: str, amax: float) -> float:
    if not (np.isfinite(amax) and amax > 0):
        raise ConversionError(
            f"{name}: the largest input in calibration is {amax}; expected a finite number above 0 "
            "(are the checkpoint's weights damaged, or the samples too few?)"
        )
    return amax
