"""What a plan decides before any weight is read: names, groups, files, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.quantize.errors import InvalidOptions, WeightError
from engines.quantize.options import CalibrationOptions, QuantizeOptions
from engines.quantize.plan import Plan, make_plan
from tests.support.random_checkpoint import RandomCheckpoint

CALIBRATION = CalibrationOptions(Path("samples.jsonl"))


def plan_for(tmp_path: Path, source: RandomCheckpoint, **options: object) -> Plan:
    directory = source.write(tmp_path / "source")
    chosen = {"format": "mxfp4", "layout": "compressed-tensors"} | options
    return make_plan(Checkpoint.open(directory), QuantizeOptions(directory, tmp_path / "out", **chosen))


def dense_mistral(**fields: object) -> RandomCheckpoint:
    return RandomCheckpoint(layout="plain", **fields)


def mixtral(**fields: object) -> RandomCheckpoint:
    return RandomCheckpoint(layout="plain", architecture="MixtralForCausalLM", num_experts=3, **fields)


def test_stages_are_embedding_layers_and_head_and_groups_share_inputs(tmp_path):
    plan = plan_for(tmp_path, dense_mistral())
    assert [stage.name for stage in plan.stages] == ["embedding", "layer 0", "layer 1", "head"]
    groups = {
        name: [module.name.rpartition(".")[2] for module in modules]
        for name, modules in plan.stages[1].groups().items()
    }
    assert groups == {
        "model.layers.0.self_attn.qkv": ["q_proj", "k_proj", "v_proj"],
        "model.layers.0.self_attn.o_proj": ["o_proj"],
        "model.layers.0.mlp.gate_up": ["gate_proj", "up_proj"],
        "model.layers.0.mlp.down_proj": ["down_proj"],
    }
    assert plan.ignore == ("lm_head",)


@pytest.mark.parametrize(
    ("layout", "name"), [("compressed-tensors", "up_proj.weight_packed"), ("modelopt", "w3.weight")]
)
@pytest.mark.parametrize("hub_names", [True, False])
def test_experts_are_called_as_the_library_calls_them(tmp_path, layout, name, hub_names):
    plan = plan_for(
        tmp_path, mixtral(hub_expert_names=hub_names), format="nvfp4", layout=layout, calibration=CALIBRATION
    )
    names = {spec.name for spec in plan.stages[1].specs}
    assert f"model.layers.0.block_sparse_moe.experts.2.{name}" in names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names
    assert plan.ignore == (
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.1.block_sparse_moe.gate",
        "lm_head",
    )


@pytest.mark.parametrize(
    "pattern", ["model.layers.1.mlp.down_proj", "*layers.1*.down_proj", r"re:.*\.1\.mlp\.down_proj"]
)
def test_ignored_modules_stay_as_they_are(tmp_path, pattern):
    plan = plan_for(tmp_path, dense_mistral(), ignore=(pattern,))
    assert plan.ignore == ("model.layers.1.mlp.down_proj", "lm_head")
    kept = next(m for m in plan.stages[2].modules if m.name == "model.layers.1.mlp.down_proj")
    assert {role: spec.dtype for role, spec in kept.specs.items()} == {"weight": "BF16"}


def test_experts_can_be_ignored_by_either_name(tmp_path):
    first = plan_for(tmp_path / "a", mixtral(), ignore=("*experts.1.w?",))
    second = plan_for(tmp_path / "b", mixtral(), ignore=("*experts.1.*_proj",))
    assert first.ignore == second.ignore
    assert "model.layers.0.block_sparse_moe.experts.1.gate_proj" in first.ignore


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*.q_proj", "servers fuse"),
        ("*.nothing", "matches no linear layer"),
        ("model.norm", "matches no linear layer"),
        ("re:(", "no regular expression"),
        ("*", "no layer to quantise"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(tmp_path, pattern, words):
    with pytest.raises(InvalidOptions, match=words):
        plan_for(tmp_path, dense_mistral(), ignore=(pattern,))


def test_a_width_that_is_no_multiple_of_the_group_is_named_with_the_way_out(tmp_path):
    source = dense_mistral(intermediate_size=176)  # 11 blocks of 16, five and a half of 32
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.down_proj has 176 .* --ignore '\*down_proj'"):
        plan_for(tmp_path, source)
    assert plan_for(tmp_path, source, ignore=("*down_proj",)).num_parameters > 0
    assert plan_for(tmp_path, source, format="nvfp4", calibration=CALIBRATION).num_parameters > 0


def test_files_hold_whole_layers_and_at_most_their_limit(tmp_path):
    whole = plan_for(tmp_path, dense_mistral(num_layers=4))
    assert list(whole.files) == ["model.safetensors"]
    layer_bytes = sum(spec.num_bytes for spec in whole.stages[1].specs)
    split = plan_for(tmp_path, dense_mistral(num_layers=4), shard_bytes=2 * layer_bytes)
    sizes = [sum(spec.num_bytes for spec in specs) for specs in split.files.values()]
    assert max(sizes) <= 2 * layer_bytes
    assert next(iter(split.files)) == f"model-00001-of-{len(sizes):05}.safetensors"
    assert sum(sizes) == whole.output_bytes
    single = plan_for(tmp_path, dense_mistral(num_layers=4), shard_bytes=1)
    assert len(single.files) == len(single.stages)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "int4"}, "format 'int4' is unknown"),
        ({"layout": "gguf"}, "layout 'gguf' is unknown"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"layout": "modelopt"}, "no checkpoint layout for MXFP4"),
        ({"method": "four-over-six"}, "powers of two"),
        ({"format": "nvfp4"}, "pass --calibration"),
        ({"method": "gptq"}, "pass --calibration"),
        ({"calibration": CalibrationOptions(Path("x"), num_samples=0)}, "at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(fields, words):
    chosen = {"format": "mxfp4", "layout": "compressed-tensors"} | fields
    with pytest.raises(InvalidOptions, match=words):
        QuantizeOptions(Path("a"), Path("b"), **chosen).check()
