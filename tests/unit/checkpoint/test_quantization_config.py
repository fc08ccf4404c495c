"""quantization_config and hf_quant_config.json, in the dialects of several writers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.patterns import ModulePatterns
from engines.checkpoint.quantization import Layout, Quantization, read_quantization
from engines.errors import CheckpointError, MalformedCheckpoint, UnsupportedCheckpoint

Q_PROJ = "model.layers.0.self_attn.q_proj"


def ct_group(short: str = "mxfp4", targets: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    scheme = {"num_bits": 4, "type": "float", "group_size": 32 if short == "mxfp4" else 16, "symmetric": True}
    group = {
        "format": f"{short}-pack-quantized",
        "targets": targets or ["Linear"],
        "weights": scheme,
        "input_activations": scheme,
    }
    return group | changes


def ct(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": ["lm_head"],
    } | changes


def modelopt(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]} | changes


def legacy(**changes: Any) -> dict[str, Any]:
    section = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.0.self_attn*"],
    }
    return {"producer": {"name": "modelopt", "version": "0.41.0"}, "quantization": section | changes}


def read(directory: Path, section: Any, legacy_document: Any = None) -> Quantization | None:
    if legacy_document is not None:
        (directory / "hf_quant_config.json").write_text(json.dumps(legacy_document))
    return read_quantization(directory, {"quantization_config": section})


def parsed(directory: Path, section: Any, legacy_document: Any = None) -> Quantization:
    quantization = read(directory, section, legacy_document)
    assert quantization is not None
    return quantization


def test_no_section_and_no_file_mean_unquantised(tmp_path: Path) -> None:
    assert read(tmp_path, None) is None


@pytest.mark.parametrize(
    ("short", "layout"),
    [("mxfp4", Layout.COMPRESSED_TENSORS_MXFP4), ("nvfp4", Layout.COMPRESSED_TENSORS_NVFP4)],
)
def test_compressed_tensors(tmp_path: Path, short: str, layout: Layout) -> None:
    quantization = parsed(tmp_path, ct(ct_group(short), version="0.19.0"))
    assert quantization.layout is layout
    assert quantization.producer == "compressed-tensors 0.19.0"
    group = quantization.group_of(Q_PROJ)
    assert group is not None
    assert (group.format, group.quantizes_activations) == (short, True)
    assert quantization.group_of("lm_head") is None


def test_weight_only_group(tmp_path: Path) -> None:
    group = parsed(tmp_path, ct(ct_group(input_activations=None))).group_of(Q_PROJ)
    assert group is not None
    assert not group.quantizes_activations


def test_the_oldest_files_name_the_format_at_the_top_only(tmp_path: Path) -> None:
    group = {key: value for key, value in ct_group("nvfp4").items() if key != "format"}
    section = ct(group, format="nvfp4-pack-quantized")
    assert parsed(tmp_path, section).layout is Layout.COMPRESSED_TENSORS_NVFP4


def test_groups_of_different_formats(tmp_path: Path) -> None:
    groups = ct_group("nvfp4", [r"re:.*self_attn\..*"]), ct_group("mxfp4", ["model.layers.0.mlp.up_proj"])
    quantization = parsed(tmp_path, ct(*groups, format="mixed-precision"))
    assert quantization.layout is Layout.COMPRESSED_TENSORS_MIXED
    formats = [
        group and group.format
        for group in map(
            quantization.group_of, (Q_PROJ, "model.layers.0.mlp.up_proj", "model.layers.0.mlp.x")
        )
    ]
    assert formats == ["nvfp4", "mxfp4", None]


def test_modelopt_in_all_three_places(tmp_path: Path) -> None:
    for section, document in ((modelopt(), None), (modelopt(), legacy()), (None, legacy())):
        quantization = parsed(tmp_path, section, document)
        assert quantization.layout is Layout.MODELOPT_NVFP4
        assert quantization.group_of("lm_head") is None
    assert quantization.group_of(Q_PROJ) is None
    assert quantization.group_of("model.layers.1.self_attn.q_proj") is not None
    assert quantization.producer == "modelopt 0.41.0"


def test_fp8_kv_cache_is_noted(tmp_path: Path) -> None:
    assert parsed(tmp_path, None, legacy(kv_cache_quant_algo="FP8")).kv_cache == "FP8"
    scheme = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert parsed(tmp_path, modelopt(kv_cache_scheme=scheme)).kv_cache == "FP8"
    assert parsed(tmp_path, ct(ct_group(), kv_cache_scheme=scheme)).kv_cache == "FP8"


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, UnsupportedCheckpoint, "quant_method is 'gptq'; supported are"),
        ({"quant_method": "mxfp4"}, UnsupportedCheckpoint, "'mxfp4'"),
        ({}, UnsupportedCheckpoint, "quant_method is None"),
        ("fp4", MalformedCheckpoint, "quantization_config is 'fp4'"),
        (ct(), MalformedCheckpoint, "config_groups is empty"),
        (ct(config_groups=[1]), MalformedCheckpoint, r"config_groups is \[1\]"),
        (ct(ct_group(format="pack-quantized")), UnsupportedCheckpoint, "format 'pack-quantized'"),
        (ct(ct_group(weights=None)), MalformedCheckpoint, "group_0.weights is None"),
        (ct(ct_group(weights={"num_bits": 8})), UnsupportedCheckpoint, "weights.num_bits is 8; only 4"),
        (ct(ct_group(weights={"group_size": 64})), UnsupportedCheckpoint, "group_size is 64; only 32"),
        (
            ct(ct_group(input_activations={"num_bits": 8})),
            UnsupportedCheckpoint,
            "input_activations.num_bits",
        ),
        (ct(ct_group(weights={"symmetric": False})), UnsupportedCheckpoint, "symmetric is False"),
        (ct(ct_group(output_activations={})), UnsupportedCheckpoint, "output activations"),
        (ct(ct_group(targets="Linear")), MalformedCheckpoint, "targets is 'Linear'"),
        (ct(ct_group(), transform_config={"R1": {}}), UnsupportedCheckpoint, "transform_config"),
        (ct(ct_group(), sparsity_config={"format": "sparse-24"}), UnsupportedCheckpoint, "'sparse-24'"),
        (ct(ct_group(), ignore=["re:("]), MalformedCheckpoint, r"'\(' is no regular expression"),
        (ct(ct_group(), ignore=["re:(a+)+b"]), UnsupportedCheckpoint, "too complex"),
        (ct(ct_group(), ignore=["re:" + "a" * 501]), UnsupportedCheckpoint, "too complex"),
        (ct(ct_group(), ignore=["re:" + ".*" * 6]), UnsupportedCheckpoint, "too complex"),
        (modelopt(quant_algo="NVFP4_AWQ"), UnsupportedCheckpoint, "quant_algo is 'NVFP4_AWQ'"),
        (modelopt(group_size=32), UnsupportedCheckpoint, "group_size is 32; NVFP4 has 16"),
        (modelopt(kv_cache_quant_algo="NVFP4"), UnsupportedCheckpoint, "KV cache quantisation 'NVFP4'"),
        (modelopt(ignore=["*" * 10]), UnsupportedCheckpoint, "too complex"),
    ],
)
def test_refusals(tmp_path: Path, section: Any, error: type[CheckpointError], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        read(tmp_path, section)
    assert type(raised.value) is error


def test_a_legacy_file_that_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"hf_quant_config\.json: modelopt quant_algo is 'FP8'"):
        read(tmp_path, modelopt(), legacy(quant_algo="FP8"))


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("Linear", Q_PROJ, True),
        ("re:.*q_proj$", Q_PROJ, True),
        ("re:q_proj", Q_PROJ, False),
        ("re:model", Q_PROJ, True),
        ("model.layers.0.self_attn", Q_PROJ, False),
    ],
)
def test_compressed_tensors_patterns(pattern: str, module: str, expected: bool) -> None:
    assert ModulePatterns.compressed_tensors([pattern]).match(module) is expected


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ("model.layers.0.self_attn*", Q_PROJ, True),
        ("model.layers.0.self_attn", Q_PROJ, True),
        ("model.layers.0.self", Q_PROJ, False),
        ("*.q_proj", Q_PROJ, True),
        ("model.layers.1*", "model.layers.0.mlp.up_proj", False),
        ("re:.*", Q_PROJ, False),
    ],
)
def test_modelopt_patterns(pattern: str, module: str, expected: bool) -> None:
    assert ModulePatterns.modelopt([pattern]).match(module) is expected


def test_the_worst_accepted_expression_is_quick() -> None:
    worst = ModulePatterns.compressed_tensors(["re:" + ".*" * 5 + "#"])
    started = time.process_time()
    assert not worst.match("model.layers.31.block_sparse_moe.experts.7.gate_proj")
    assert time.process_time() - started < 5
