"""Which modules are quantised and how, from config.json and hf_quant_config.json (fp4-formats section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.patterns import ModulePatterns
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

HF_QUANT_CONFIG = "hf_quant_config.json"
GROUP_SIZES = {"mxfp4": 32, "nvfp4": 16}
_CT_FORMATS = {"mxfp4-pack-quantized": "mxfp4", "nvfp4-pack-quantized": "nvfp4"}
_MAX_PATTERNS = 100_000
_MAX_PRODUCER_LENGTH = 100


class Layout(str, Enum):
    """How the checkpoint stores its FP4 weights."""

    COMPRESSED_TENSORS_MXFP4 = "compressed-tensors mxfp4-pack-quantized"
    COMPRESSED_TENSORS_NVFP4 = "compressed-tensors nvfp4-pack-quantized"
    COMPRESSED_TENSORS_MIXED = "compressed-tensors mxfp4-pack-quantized and nvfp4-pack-quantized"
    MODELOPT_NVFP4 = "modelopt NVFP4"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class QuantizationGroup:
    """Modules quantised alike. `format` is "mxfp4" or "nvfp4"."""

    name: str
    format: str
    targets: ModulePatterns
    quantizes_activations: bool


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint declares. `kv_cache` names the scheme of the KV cache it was calibrated for."""

    convention: str
    groups: tuple[QuantizationGroup, ...]
    ignore: ModulePatterns
    kv_cache: str | None = None
    producer: str | None = None

    def group_of(self, module: str) -> QuantizationGroup | None:
        """The group of the linear layer `module`; None when it is not quantised."""
        if self.ignore.match(module):
            return None
        return next((group for group in self.groups if group.targets.match(module)), None)

    @property
    def layout(self) -> Layout:
        if self.convention == "modelopt":
            return Layout.MODELOPT_NVFP4
        formats = {group.format for group in self.groups}
        if len(formats) > 1:
            return Layout.COMPRESSED_TENSORS_MIXED
        return Layout.COMPRESSED_TENSORS_MXFP4 if "mxfp4" in formats else Layout.COMPRESSED_TENSORS_NVFP4


def read_quantization(directory: Path, config: Mapping[str, Any]) -> Quantization | None:
    """Parse what `config` (config.json) and hf_quant_config.json say; None for an unquantised checkpoint.

    Raises UnsupportedCheckpoint for other methods and formats, MalformedCheckpoint for contradictions.
    """
    path = directory / "config.json"
    section = config.get("quantization_config")
    if section is None:
        section = config.get("compression_config")  # what the oldest compressed-tensors files call it
    legacy_path = directory / HF_QUANT_CONFIG
    legacy = read_json_object(legacy_path) if legacy_path.exists() else None
    if section is None:
        return None if legacy is None else _parse_modelopt(legacy_path, legacy)
    section = _object(path, "quantization_config", section)
    method = section.get("quant_method")
    if method == "compressed-tensors":
        return _parse_compressed_tensors(path, section)
    if method in ("modelopt", "modelopt_fp4"):
        parsed = _parse_modelopt(path, section)
        if legacy is not None:
            # It has to be an NVFP4 description too; TensorRT-LLM reads the KV cache's scheme here.
            kv_cache = _parse_modelopt(legacy_path, legacy).kv_cache
            parsed = replace(parsed, kv_cache=parsed.kv_cache or kv_cache)
        return parsed
    raise UnsupportedCheckpoint(
        f"{path}: quant_method is {method!r:.100}; supported are 'compressed-tensors' "
        "(mxfp4-pack-quantized, nvfp4-pack-quantized) and 'modelopt' (NVFP4)"
    )


def _parse_compressed_tensors(path: Path, section: Mapping[str, Any]) -> Quantization:
    groups = _object(path, "config_groups", section.get("config_groups"))
    if not groups:
        raise MalformedCheckpoint(f"{path}: quantization_config.config_groups is empty; expected a group")
    if section.get("transform_config"):
        raise UnsupportedCheckpoint(
            f"{path}: transform_config is not empty; run-time transforms are not supported"
        )
    sparsity = section.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise UnsupportedCheckpoint(f"{path}: sparse format {sparsity['format']!r:.100} is not supported")
    return Quantization(
        convention="compressed-tensors",
        groups=tuple(
            _parse_group(path, name, group, section.get("format")) for name, group in groups.items()
        ),
        ignore=_patterns(path, "ignore", section.get("ignore") or []),
        kv_cache=_kv_cache_scheme(section.get("kv_cache_scheme")),
        producer=_with_version("compressed-tensors", section.get("version")),
    )


def _parse_group(path: Path, name: str, group: object, default_format: object) -> QuantizationGroup:
    where = f"config_groups.{name}"
    fields = _object(path, where, group)
    stored_format = fields.get("format") or default_format
    if not isinstance(stored_format, str) or stored_format not in _CT_FORMATS:
        raise UnsupportedCheckpoint(
            f"{path}: {where} has the format {stored_format!r:.100}; supported are {', '.join(_CT_FORMATS)}"
        )
    short = _CT_FORMATS[stored_format]
    _check_scheme(path, f"{where}.weights", fields.get("weights"), GROUP_SIZES[short])
    activations = fields.get("input_activations")
    if activations is not None:
        _check_scheme(path, f"{where}.input_activations", activations, GROUP_SIZES[short])
    if fields.get("output_activations") is not None:
        raise UnsupportedCheckpoint(f"{path}: {where}: quantised output activations are not supported")
    targets = _patterns(path, f"{where}.targets", fields.get("targets"))
    return QuantizationGroup(name, short, targets, quantizes_activations=activations is not None)


def _check_scheme(path: Path, where: str, scheme: object, group_size: int) -> None:
    fields = _object(path, where, scheme)
    expected = {"num_bits": 4, "type": "float", "group_size": group_size, "symmetric": True}
    for key, value in expected.items():
        got = fields.get(key)
        if got is not None and got != value:
            raise UnsupportedCheckpoint(f"{path}: {where}.{key} is {got!r:.100}; only {value!r} is supported")


def _parse_modelopt(path: Path, document: Mapping[str, Any]) -> Quantization:
    """Both spellings: hf_quant_config.json nests under "quantization", config.json does not."""
    section = document
    if "quantization" in document:
        section = _object(path, "quantization", document["quantization"])
    algorithm = section.get("quant_algo")
    if algorithm != "NVFP4":
        raise UnsupportedCheckpoint(
            f"{path}: modelopt quant_algo is {algorithm!r:.100}; only 'NVFP4' is supported"
        )
    group_size = section.get("group_size")
    if group_size not in (None, GROUP_SIZES["nvfp4"]):
        raise UnsupportedCheckpoint(f"{path}: group_size is {group_size!r:.100}; NVFP4 has 16")
    quantizes_activations = True
    for name, group in _object(path, "config_groups", section.get("config_groups") or {}).items():
        fields = _object(path, f"config_groups.{name}", group)
        _check_scheme(path, f"config_groups.{name}.weights", fields.get("weights"), GROUP_SIZES["nvfp4"])
        quantizes_activations = fields.get("input_activations") is not None
    ignore = section.get("exclude_modules") or section.get("ignore") or []
    kv_cache = section.get("kv_cache_quant_algo")
    if kv_cache is None:
        kv_cache = _kv_cache_scheme(section.get("kv_cache_scheme"))
    if kv_cache not in (None, "FP8"):
        raise UnsupportedCheckpoint(f"{path}: KV cache quantisation {kv_cache!r:.100}; only FP8 is supported")
    everything = ModulePatterns.modelopt(["*"])
    return Quantization(
        convention="modelopt",
        groups=(QuantizationGroup("group_0", "nvfp4", everything, quantizes_activations),),
        ignore=_patterns(path, "exclude_modules", ignore, wildcards=True),
        kv_cache=kv_cache,
        producer=_producer(document.get("producer")),
    )


def _producer(producer: object) -> str:
    if not isinstance(producer, dict) or not isinstance(producer.get("name"), str):
        return "modelopt"
    return _with_version(producer["name"], producer.get("version"))


def _with_version(name: str, version: object) -> str:
    text = f"{name} {version}" if isinstance(version, str) else name
    return (
        text
        if text.isprintable() and len(text) <= _MAX_PRODUCER_LENGTH
        else ascii(text)[:_MAX_PRODUCER_LENGTH]
    )


def _kv_cache_scheme(scheme: object) -> str | None:
    if not isinstance(scheme, dict):
        return None
    return "FP8" if scheme.get("num_bits") == 8 and scheme.get("type") == "float" else f"{scheme!r:.100}"


def _object(path: Path, where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedCheckpoint(f"{path}: {where} is {value!r:.100}; expected an object")
    return value


def _patterns(path: Path, where: str, value: object, *, wildcards: bool = False) -> ModulePatterns:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedCheckpoint(f"{path}: {where} is {value!r:.100}; expected a list of names")
    if len(value) > _MAX_PATTERNS:
        raise MalformedCheckpoint(
            f"{path}: {where} has {len(value)} entries; expected at most {_MAX_PATTERNS}"
        )
    return ModulePatterns.modelopt(value) if wildcards else ModulePatterns.compressed_tensors(value)
