"""What a checkpoint is, how large, what is odd about it, and which engine of this machine can run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.checkpoint.architecture import expert_names
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.quantization import Layout
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.trtllm.machine import detect_machine
from engines.trtllm.suitability import Fit, checkpoint_suitability

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes on disk by kind. `unused`: in the files but of no module, KV cache scales for instance."""

    fp4_codes: int
    fp4_scales: int
    dense: int
    unused: int

    @property
    def total(self) -> int:
        return self.fp4_codes + self.fp4_scales + self.dense + self.unused


@dataclass(frozen=True, slots=True)
class EngineVerdict:
    """Whether an engine can run this checkpoint on this machine, and why (not)."""

    engine: str
    runs: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything `nybble inspect` shows. `compression_ratio` is BF16 size over stored size."""

    directory: Path
    layout: Layout
    producer: str | None
    config: ModelConfig
    num_parameters: int
    num_fp4_modules: int
    num_dense_modules: int
    quantizes_activations: bool
    stored_bytes: StoredBytes
    compression_ratio: float
    ignored_modules: tuple[str, ...]
    kv_cache: str | None
    warnings: tuple[str, ...]
    engines: tuple[EngineVerdict, ...]


def inspect(directory: Path) -> Inspection:
    """Open, check and describe the checkpoint in `directory`. Raises CheckpointError."""
    checkpoint = Checkpoint.open(directory)
    modules = checkpoint.modules()
    fp4 = [module for module in modules if isinstance(module, Fp4Tensors)]
    num_parameters = sum(_num_parameters(module) for module in modules)
    stored = _stored_bytes(checkpoint)
    quantization = checkpoint.quantization
    return Inspection(
        directory=directory,
        layout=checkpoint.layout,
        producer=quantization.producer if quantization else None,
        config=checkpoint.config,
        num_parameters=num_parameters,
        num_fp4_modules=len(fp4),
        num_dense_modules=len(modules) - len(fp4),
        quantizes_activations=any(module.quantizes_activations for module in fp4),
        stored_bytes=stored,
        compression_ratio=num_parameters * _BF16_BYTES / (stored.total - stored.unused),
        ignored_modules=_ignored_modules(modules) if quantization else (),
        kv_cache=quantization.kv_cache if quantization else None,
        warnings=tuple(_warnings(checkpoint)),
        engines=_verdicts(checkpoint, directory),
    )


def _num_parameters(module: Fp4Tensors | DenseTensors) -> int:
    num_weights = module.num_rows * module.num_columns if isinstance(module, Fp4Tensors) else module.data.size
    return num_weights + (0 if module.bias is None else module.bias.size)


def _stored_bytes(checkpoint: Checkpoint) -> StoredBytes:
    kind_of: dict[str, str] = {}
    for module in checkpoint.modules():
        kind_of[f"{module.name}.bias"] = "dense"
        if isinstance(module, DenseTensors):
            kind_of[f"{module.name}.weight"] = "dense"
            continue
        for suffix in ("weight", "weight_packed"):
            kind_of[f"{module.name}.{suffix}"] = "codes"
        for suffix in (
            "weight_scale",
            "weight_global_scale",
            "input_global_scale",
            "weight_scale_2",
            "input_scale",
        ):
            kind_of[f"{module.name}.{suffix}"] = "scales"
    sizes: Counter[str] = Counter()
    for name, info in checkpoint.tensors.items():
        sizes[kind_of.get(name, "unused")] += info.num_bytes
    return StoredBytes(sizes["codes"], sizes["scales"], sizes["dense"], sizes["unused"])


def _ignored_modules(modules: tuple[Fp4Tensors | DenseTensors, ...]) -> tuple[str, ...]:
    """Linear layers kept unquantised: two-dimensional and not the embedding."""
    return tuple(
        module.name
        for module in modules
        if isinstance(module, DenseTensors) and module.data.ndim == 2 and module.name != "model.embed_tokens"
    )


def _warnings(checkpoint: Checkpoint) -> Iterator[str]:
    unequal = [names for names in _fused_groups(checkpoint.config) if _has_unequal_scales(checkpoint, names)]
    if unequal:
        yield (
            f"{len(unequal)} groups of layers that share an input have unequal global scales (the first: "
            f"{', '.join(unequal[0])}); the cpu engine keeps them apart, but servers that fuse such layers "
            "compute a wrong model"
        )
    lacking = [module.name for module in checkpoint.modules() if _lacks_input_scale(module)]
    if lacking:
        yield (
            f"{len(lacking)} layers have no input scale (the first: {lacking[0]}); "
            "serve with --activations bf16"
        )
    kv_cache = checkpoint.quantization.kv_cache if checkpoint.quantization else None
    if kv_cache is not None:
        yield (
            f"calibrated for a KV cache in {kv_cache}; the cpu engine keeps bfloat16 unless told "
            "--kv-cache-dtype fp8, which finds scales of its own"
        )


def _has_unequal_scales(checkpoint: Checkpoint, names: tuple[str, ...]) -> bool:
    modules = [checkpoint.linear(name) for name in names]
    return len({module.global_scale for module in modules if isinstance(module, Fp4Tensors)}) > 1


def _fused_groups(config: ModelConfig) -> Iterator[tuple[str, ...]]:
    """Layers that share an input and that other servers therefore fuse (fp4-formats section 8)."""
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield tuple(f"{prefix}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        if not config.num_experts:
            yield tuple(f"{prefix}.mlp.{name}" for name in ("gate_proj", "up_proj"))
        for expert in range(config.num_experts):
            yield tuple(expert_names(layer, expert, part)[0] for part in ("gate", "up"))


def _verdicts(checkpoint: Checkpoint, directory: Path) -> tuple[EngineVerdict, ...]:
    tensorrt_llm = checkpoint_suitability(checkpoint, directory, detect_machine())
    return (
        EngineVerdict("cpu", True, cpu_reason(checkpoint)[0]),
        EngineVerdict("trtllm", tensorrt_llm.fit is Fit.RUNS, tensorrt_llm.reason),
        EngineVerdict("echo", True, "has no model: it repeats the prompt, for load tests"),
    )


def cpu_reason(checkpoint: Checkpoint) -> tuple[str, tuple[str, ...]]:
    """How the CPU engine runs a checkpoint that could be opened, and the options that takes."""
    if any(_lacks_input_scale(module) for module in checkpoint.modules()):
        return "with --activations bf16 only, because input scales are missing", ("--activations", "bf16")
    return "all its layers and formats are supported", ()


def _lacks_input_scale(module: Fp4Tensors | DenseTensors) -> bool:
    return (
        isinstance(module, Fp4Tensors)
        and module.format == "nvfp4"
        and module.quantizes_activations
        and module.input_scale is None
    )
