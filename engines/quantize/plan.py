"""Which module becomes what, in which file: decided before any weight is read, and the same in every run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from engines.checkpoint.architecture import ModuleKind, ModuleSpec, module_specs
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.safetensors_file import VIEW_DTYPES
from engines.checkpoint.safetensors_writer import TensorSpec
from engines.checkpoint.tensors import DenseTensors
from engines.quantize.errors import InvalidOptions, WeightError
from engines.quantize.layouts import in_file_order, output_name, weight_specs
from engines.quantize.options import QuantizeOptions

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
_FUSED |= {"w1": "gate_up", "w3": "gate_up"}


@dataclass(frozen=True, slots=True, eq=False)
class PlannedModule:
    """One module: `source` as it is, `name` in the output; `group` names the modules that share its input.

    `specs` are its output tensors by role: "codes", "scales", "global_scale", "input_scale" of a quantised
    weight, or "weight"; and "bias".
    """

    source: DenseTensors
    name: str
    kind: ModuleKind
    group: str
    quantized: bool
    specs: dict[str, TensorSpec]

    @property
    def num_parameters(self) -> int:
        return int(self.source.data.size)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What is read, quantised and written at a time: the embedding, one decoder layer, or norm and head.

    `layer` is None but for decoder layers.
    """

    name: str
    layer: int | None
    modules: tuple[PlannedModule, ...]

    def groups(self) -> dict[str, tuple[PlannedModule, ...]]:
        """The quantised modules by the input they share, in the model's order."""
        grouped: dict[str, list[PlannedModule]] = {}
        for module in self.modules:
            if module.quantized:
                grouped.setdefault(module.group, []).append(module)
        return {name: tuple(modules) for name, modules in grouped.items()}

    @property
    def specs(self) -> list[TensorSpec]:
        return [spec for module in self.modules for spec in module.specs.values()]

    @property
    def num_parameters(self) -> int:
        return sum(module.num_parameters for module in self.modules)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All stages in order; `files` maps output file names to their tensors in file order."""

    stages: tuple[Stage, ...]
    files: dict[str, list[TensorSpec]]
    ignore: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        return sum(stage.num_parameters for stage in self.stages)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors written."""
        return sum(spec.num_bytes for specs in self.files.values() for spec in specs)


def make_plan(checkpoint: Checkpoint, options: QuantizeOptions) -> Plan:
    """The plan for an unquantised checkpoint.

    Raises InvalidOptions for a pattern that means no linear layer or splits layers which servers fuse,
    WeightError for a layer whose width is no multiple of the group size.
    """
    matcher = _IgnoreMatcher(options.ignore)
    planned = [_plan_module(checkpoint, spec, options, matcher) for spec in module_specs(checkpoint.config)]
    matcher.require_all_used()
    _require_whole_groups(planned)
    if not any(module.quantized for module in planned):
        raise InvalidOptions("--ignore leaves no layer to quantise")
    stages = tuple(_stages(planned))
    linear = [module.name for module in planned if module.kind is not ModuleKind.DENSE]
    kept = {module.name for module in planned if not module.quantized}
    ignore = [name for name in linear if name in kept]
    if "lm_head" not in ignore:
        ignore.append("lm_head")  # tied to the embedding: not in the files, but a Linear to the loaders
    return Plan(stages, _files(stages, options.shard_bytes), tuple(ignore))


def _plan_module(
    checkpoint: Checkpoint, spec: ModuleSpec, options: QuantizeOptions, matcher: _IgnoreMatcher
) -> PlannedModule:
    source = checkpoint.linear(spec.names[0])
    assert isinstance(source, DenseTensors)
    name = output_name(source.name, options.layout)
    is_ignored = spec.kind is ModuleKind.LINEAR and matcher.match((*spec.names, name))
    quantized = spec.kind is ModuleKind.LINEAR and not is_ignored and name != "lm_head"
    specs: dict[str, TensorSpec] = {}
    if quantized:
        num_rows, num_columns = spec.shape
        if num_columns % options.group_size:
            raise WeightError(
                f"{checkpoint.directory}: {source.name} has {num_columns} columns, no multiple of "
                f"{options.format}'s group of {options.group_size}; "
                f"keep it unquantised with --ignore '*{source.name.rpartition('.')[2]}'"
            )
        specs |= weight_specs(name, (num_rows, num_columns), options.format, options.layout)
    else:
        specs["weight"] = TensorSpec(f"{name}.weight", source.dtype, source.shape)
    if source.bias is not None:
        dtype = checkpoint.tensors[f"{source.name}.bias"].dtype
        specs["bias"] = TensorSpec(f"{name}.bias", dtype, source.bias.shape)
    prefix, _, last = source.name.rpartition(".")
    return PlannedModule(source, name, spec.kind, f"{prefix}.{_FUSED.get(last, last)}", quantized, specs)


class _IgnoreMatcher:
    """Patterns of the command line; remembers which ones meant something."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._unused = set(patterns)
        self._expressions: dict[str, re.Pattern[str]] = {}
        for pattern in patterns:
            if pattern.startswith("re:"):
                try:
                    self._expressions[pattern] = re.compile(pattern.removeprefix("re:"))
                except re.error as error:
                    raise InvalidOptions(f"--ignore {pattern!r} is no regular expression: {error}") from None

    def match(self, names: Sequence[str]) -> bool:
        hits = [p for p in self._patterns if any(self._means(p, name) for name in names)]
        self._unused.difference_update(hits)
        return bool(hits)

    def _means(self, pattern: str, name: str) -> bool:
        expression = self._expressions.get(pattern)
        if expression is not None:
            return expression.match(name) is not None
        return fnmatchcase(name, pattern)

    def require_all_used(self) -> None:
        unused = [pattern for pattern in self._patterns if pattern in self._unused]
        if unused:
            raise InvalidOptions(
                f"--ignore {unused[0]!r} matches no linear layer; expected a module name such as "
                "'model.layers.0.mlp.down_proj', a wildcard such as '*.down_proj', or 're:' and an expression"
            )


def _require_whole_groups(modules: Sequence[PlannedModule]) -> None:
    grouped: dict[str, list[PlannedModule]] = {}
    for module in modules:
        if module.kind is ModuleKind.LINEAR:
            grouped.setdefault(module.group, []).append(module)
    for group in grouped.values():
        if len({module.quantized for module in group}) > 1:
            kept = next(module.source.name for module in group if not module.quantized)
            others = ", ".join(module.source.name for module in group if module.quantized)
            raise InvalidOptions(
                f"--ignore keeps {kept} but not {others}, and servers fuse these into one product; "
                "ignore all of them or none"
            )


def _stages(modules: Sequence[PlannedModule]) -> Iterator[Stage]:
    """The modules come in the model's order, so equal keys are adjacent."""
    current: list[PlannedModule] = []
    layer: int | None = None
    for module in modules:
        found = _LAYER.match(module.source.name)
        number = int(found.group(1)) if found else None
        if current and number != layer:
            yield _stage(layer, current)
            current = []
        layer = number
        current.append(module)
    yield _stage(layer, current)


def _stage(layer: int | None, modules: Sequence[PlannedModule]) -> Stage:
    if layer is not None:
        return Stage(f"layer {layer}", layer, tuple(modules))
    name = "embedding" if modules[0].source.name == "model.embed_tokens" else "head"
    return Stage(name, None, tuple(modules))


def _files(stages: Sequence[Stage], shard_bytes: int) -> dict[str, list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for stage in stages:
        size = sum(spec.num_bytes for spec in stage.specs)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].extend(stage.specs)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": in_file_order(shards[0])}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": in_file_order(specs)
        for number, specs in enumerate(shards, 1)
    }


def source_bytes(plan: Plan) -> int:
    """Bytes of the source's tensors that the plan reads."""
    return sum(
        module.num_parameters * VIEW_DTYPES[module.source.dtype].itemsize
        for stage in plan.stages
        for module in stage.modules
    )
