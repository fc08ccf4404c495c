"""Which module becomes what, in which file: decided, and refused, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.checkpoint.architecture import ModuleKind, ModuleSpec, module_specs
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.checkpoint.safetensors_writer import TensorSpec
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.convert.errors import NotLossless
from engines.convert.options import ConvertOptions, Target
from engines.convert.rewrites import Rewrite, plan_rewrites
from engines.errors import UnsupportedCheckpoint
from engines.quantize.layouts import in_file_order, output_name, weight_specs

_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv"}
_FUSED |= dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up")

InputScale = Callable[[Fp4Tensors], float | None]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedModule:
    """One module: `source` as it is, `specs` its tensors in the target by role.

    Roles of an FP4 weight: "codes", "scales", "global_scale", "input_scale"; of a dense one "weight"; "bias"
    of either. `rewrite` is None for a dense module.
    """

    source: Fp4Tensors | DenseTensors
    name: str
    file: str
    specs: dict[str, TensorSpec]
    rewrite: Rewrite | None
    input_scale: float | None

    def converted(self) -> Fp4Tensors:
        """The FP4 module in the target's form; made anew at every call, so that nothing large is kept."""
        assert isinstance(self.source, Fp4Tensors)
        assert self.rewrite is not None
        return replace(self.rewrite.apply(self.source), name=self.name, input_scale=self.input_scale)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`files` maps the target's file names to their tensors in file order; `ignore` names the linear layers
    that are not quantised; `left_out` the source's tensors that belong to no module."""

    modules: tuple[PlannedModule, ...]
    files: dict[str, list[TensorSpec]]
    ignore: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors written."""
        return sum(spec.num_bytes for specs in self.files.values() for spec in specs)


def check_source(checkpoint: Checkpoint, options: ConvertOptions) -> None:
    """Refuse a source that has nothing to convert. Raises UnsupportedCheckpoint, NotLossless."""
    directory, layout, target = checkpoint.directory, checkpoint.layout, options.target
    if layout is Layout.PLAIN:
        raise UnsupportedCheckpoint(
            f"{directory}: is not quantised; make an FP4 checkpoint of it with `nybble quantize`"
        )
    is_done = (layout is Layout.MODELOPT_NVFP4 and target is Target.NVFP4_MODELOPT) or (
        layout is Layout.COMPRESSED_TENSORS_NVFP4 and target is Target.NVFP4_COMPRESSED_TENSORS
    )
    if is_done:
        raise UnsupportedCheckpoint(f"{directory}: is {target.value} already; there is nothing to convert")
    if checkpoint.quantization is not None and checkpoint.quantization.kv_cache and not options.lossy:
        raise NotLossless(
            f"{directory}: has scales for a KV cache in {checkpoint.quantization.kv_cache}, which a "
            "conversion leaves out; pass --lossy to accept that"
        )


def make_plan(checkpoint: Checkpoint, options: ConvertOptions, input_scale: InputScale) -> Plan:
    """Plan every module; reads all codes and block scales once. `input_scale` gives the target's, or None.

    Raises ConversionError as `plan_rewrites` and `input_scale` do.
    """
    layout = options.target.convention.value
    specs = list(module_specs(checkpoint.config))
    rewrites = _plan_all_rewrites(checkpoint, specs, options)
    modules = []
    for spec in specs:
        source = checkpoint.linear(spec.names[0])
        scale = input_scale(source) if isinstance(source, Fp4Tensors) else None
        name = output_name(source.name, layout)
        tensors = _output_specs(checkpoint, source, name, layout, scale is not None)
        file = checkpoint.tensors[_weight_tensor(source)].file.name
        modules.append(PlannedModule(source, name, file, tensors, rewrites.get(source.name), scale))
    files: dict[str, list[TensorSpec]] = {}
    for module in modules:
        files.setdefault(module.file, []).extend(module.specs.values())
    return Plan(
        modules=tuple(modules),
        files={name: in_file_order(tensors) for name, tensors in sorted(files.items())},
        ignore=_ignored(specs, modules),
        left_out=_left_out(checkpoint),
    )


def _plan_all_rewrites(
    checkpoint: Checkpoint, specs: Sequence[ModuleSpec], options: ConvertOptions
) -> dict[str, Rewrite]:
    groups: dict[str, list[Fp4Tensors]] = {}
    for spec in specs:
        source = checkpoint.linear(spec.names[0])
        if isinstance(source, Fp4Tensors):
            prefix, _, last = source.name.rpartition(".")
            groups.setdefault(f"{prefix}.{_FUSED.get(last, last)}", []).append(source)
    planned: dict[str, Rewrite] = {}
    for group in groups.values():
        rewrites = plan_rewrites(group, options.target.convention, lossy=options.lossy)
        planned.update({module.name: one for module, one in zip(group, rewrites, strict=True)})
    return planned


def _output_specs(
    checkpoint: Checkpoint,
    source: Fp4Tensors | DenseTensors,
    name: str,
    layout: str,
    has_input_scale: bool,
) -> dict[str, TensorSpec]:
    if isinstance(source, Fp4Tensors):
        specs = weight_specs(name, (source.num_rows, source.num_columns), "nvfp4", layout)
        if not has_input_scale:
            del specs["input_scale"]
    else:
        specs = {"weight": TensorSpec(f"{name}.weight", source.dtype, source.shape)}
    if source.bias is not None:
        dtype = checkpoint.tensors[f"{source.name}.bias"].dtype
        specs["bias"] = TensorSpec(f"{name}.bias", dtype, source.bias.shape)
    return specs


def _weight_tensor(module: Fp4Tensors | DenseTensors) -> str:
    is_packed = isinstance(module, Fp4Tensors) and module.convention != "modelopt"
    return f"{module.name}.weight_packed" if is_packed else f"{module.name}.weight"


def _ignored(specs: Sequence[ModuleSpec], modules: Sequence[PlannedModule]) -> tuple[str, ...]:
    ignored = [
        module.name
        for spec, module in zip(specs, modules, strict=True)
        if spec.kind is not ModuleKind.DENSE and module.rewrite is None
    ]
    if not any(spec.names == ("lm_head",) for spec in specs):
        ignored.append("lm_head")  # tied to the embedding: not in the files, but a Linear to the loaders
    return tuple(ignored)


def _left_out(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Tensors of no module: KV cache scales, say, or what the architecture does not have."""
    taken: set[str] = set()
    for module in checkpoint.modules():
        roles = ["weight", "bias"]
        if isinstance(module, Fp4Tensors):
            specs = weight_specs(module.name, (1, 32), module.format, module.convention)
            taken.update(spec.name for spec in specs.values())
            roles = ["bias"]
        taken.update(f"{module.name}.{role}" for role in roles)
    return tuple(sorted(set(checkpoint.tensors) - taken))
