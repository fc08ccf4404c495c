"""The golden checkpoints through `Checkpoint` and `inspect`, and variants that have to be read as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.inspection import inspect
from engines.checkpoint.quantization import Layout
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cli import register
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint
from engines.fp4 import bfloat16
from tests.support.checkpoint_edits import Tensors, copy_checkpoint, edit_json, edit_tensors
from tests.support.random_checkpoint import RandomCheckpoint

LAYOUTS = {
    "base-mistral": Layout.PLAIN,
    "mistral-mxfp4-ct": Layout.COMPRESSED_TENSORS_MXFP4,
    "mistral-nvfp4-ct": Layout.COMPRESSED_TENSORS_NVFP4,
    "mixtral-nvfp4-modelopt": Layout.MODELOPT_NVFP4,
    "mixtral-nvfp4-modelopt041": Layout.MODELOPT_NVFP4,
}
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(("name", "layout"), LAYOUTS.items())
def test_golden_checkpoints_open(golden: Path, name: str, layout: Layout) -> None:
    checkpoint = Checkpoint.open(golden / name)
    assert checkpoint.layout is layout
    assert checkpoint.config.eos_token_ids == {2}
    for module in checkpoint.modules():
        assert checkpoint.linear(module.name) is module
    num_fp4 = sum(isinstance(module, Fp4Tensors) for module in checkpoint.modules())
    assert num_fp4 == {"base-mistral": 0}.get(name, 2 * 7 if name.startswith("mistral") else 2 * (4 + 12))


@pytest.mark.parametrize("name", ["mistral-mxfp4-ct", "mistral-nvfp4-ct"])
def test_decoded_weights_are_near_the_source(golden: Path, name: str) -> None:
    checkpoint, source = Checkpoint.open(golden / name), Checkpoint.open(golden / "base-mistral")
    module = checkpoint.linear(UP)
    assert isinstance(module, Fp4Tensors)
    expected = source.dense(UP).as_float32()
    decoded = module.decoded(round_to_bfloat16=module.rounds_to_bfloat16)
    assert decoded.shape == (module.num_rows, module.num_columns) == expected.shape
    relative_error = float(((decoded - expected) ** 2).sum() / (expected**2).sum())
    assert 0.005 < relative_error < 0.02
    assert module.rounds_to_bfloat16 is (name == "mistral-nvfp4-ct")


def test_rounding_to_bfloat16_is_on_request(golden: Path) -> None:
    module = Checkpoint.open(golden / "mistral-nvfp4-ct").linear(UP)
    assert isinstance(module, Fp4Tensors)
    exact, rounded = module.decoded(False), module.decoded(True)
    assert (exact != rounded).any()
    np.testing.assert_array_equal(bfloat16.round_trip(exact), rounded)


def test_weights_are_views_into_the_file(golden: Path) -> None:
    module = Checkpoint.open(golden / "mistral-nvfp4-ct").linear(UP)
    assert isinstance(module, Fp4Tensors)
    for array in (module.packed, module.scales):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_experts_by_part_whatever_their_spelling(tmp_path: Path) -> None:
    model = {"architecture": "MixtralForCausalLM", "num_experts": 2, "num_layers": 1}
    hub = RandomCheckpoint(**model, hub_expert_names=True).write(tmp_path / "hub")
    written = RandomCheckpoint(**model, hub_expert_names=False).write(tmp_path / "llmc")
    first, second = Checkpoint.open(hub), Checkpoint.open(written)
    for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        expert = first.expert(0, 1, part)
        other = second.expert(0, 1, part)
        assert expert.name == f"model.layers.0.block_sparse_moe.experts.1.{name}"
        assert other.name == f"model.layers.0.block_sparse_moe.experts.1.{part}_proj"
        assert isinstance(expert, Fp4Tensors)
        assert isinstance(other, Fp4Tensors)
        np.testing.assert_array_equal(expert.packed, other.packed)
    assert first.router(0).shape == (2, 96)


def test_unequal_input_scales_of_experts_are_kept(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden / "mixtral-nvfp4-modelopt041")
    scales = {checkpoint.expert(0, expert, "down").input_scale for expert in range(4)}
    assert len(scales) > 1


@pytest.mark.parametrize("layout", ["mxfp4", "nvfp4", "modelopt", "plain"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_shards_and_one_file_hold_the_same(tmp_path: Path, layout: str, num_shards: int) -> None:
    random = RandomCheckpoint(layout=layout, num_shards=num_shards, num_layers=1)
    checkpoint = Checkpoint.open(random.write(tmp_path / "model"))
    for name, expected in random.tensors.items():
        assert checkpoint.tensors.view(name).tobytes() == expected.tobytes()


def test_shards_may_be_links(tmp_path: Path) -> None:
    RandomCheckpoint(num_shards=2, num_layers=1).write(tmp_path / "store")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "store").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert Checkpoint.open(tmp_path / "snapshot").layout is Layout.COMPRESSED_TENSORS_MXFP4


def test_tied_embeddings_are_the_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(RandomCheckpoint(tie_word_embeddings=True).write(tmp_path))
    assert checkpoint.dense("lm_head") is checkpoint.dense("model.embed_tokens")


def test_biases_are_read(tmp_path: Path) -> None:
    random = RandomCheckpoint(architecture="LlamaForCausalLM", attention_bias=True)
    module = Checkpoint.open(random.write(tmp_path)).linear("model.layers.0.self_attn.q_proj")
    expected = random.tensors["model.layers.0.self_attn.q_proj.bias"].astype(np.float32)
    assert module.bias is not None
    np.testing.assert_array_equal(module.bias, expected)


def test_global_scales_of_either_shape(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-nvfp4-ct", tmp_path)

    def reshape(tensors: Tensors) -> None:
        for name, (dtype, array) in tensors.items():
            if name.endswith("global_scale"):
                tensors[name] = (dtype, array.reshape(()))

    edit_tensors(copy, reshape)
    original = Checkpoint.open(golden / "mistral-nvfp4-ct").linear(UP)
    changed = Checkpoint.open(copy).linear(UP)
    assert isinstance(original, Fp4Tensors)
    assert isinstance(changed, Fp4Tensors)
    assert (original.global_scale, original.input_scale) == (changed.global_scale, changed.input_scale)


def test_weight_only_nvfp4_needs_no_input_scale(tmp_path: Path) -> None:
    directory = RandomCheckpoint(layout="nvfp4", quantize_activations=False).write(tmp_path)
    module = Checkpoint.open(directory).linear(UP)
    assert isinstance(module, Fp4Tensors)
    assert (module.input_scale, module.quantizes_activations) == (None, False)
    assert not any("input scale" in warning for warning in inspect(directory).warnings)


def test_a_missing_input_scale_is_a_warning_and_not_an_error(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-nvfp4-ct", tmp_path)
    edit_tensors(copy, lambda tensors: tensors.pop(f"{UP}.input_global_scale") and None)
    module = Checkpoint.open(copy).linear(UP)
    assert isinstance(module, Fp4Tensors)
    assert (module.input_scale, module.quantizes_activations) == (None, True)
    inspection = inspect(copy)
    assert inspection.warnings == (
        f"1 layers have no input scale (the first: {UP}); serve with --activations bf16",
    )
    assert "--activations bf16" in inspection.engines[0].reason


def test_kv_cache_scales_are_ignored(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mixtral-nvfp4-modelopt", tmp_path)
    name = "model.layers.0.self_attn.k_proj.k_scale"
    edit_tensors(copy, lambda tensors: tensors.update({name: ("F32", np.array(1.0, np.float32))}))
    assert inspect(copy).stored_bytes.unused == 4


def test_dense_accessor_refuses_fp4(golden: Path) -> None:
    with pytest.raises(KeyError, match="stored in FP4"):
        Checkpoint.open(golden / "mistral-mxfp4-ct").dense(UP)


def test_inspection_adds_up(golden: Path) -> None:
    inspection = inspect(golden / "mistral-mxfp4-ct")
    stored = inspection.stored_bytes
    assert inspection.num_parameters == inspect(golden / "base-mistral").num_parameters
    assert stored.fp4_scales * 16 == stored.fp4_codes
    assert stored.fp4_codes * 2 + stored.dense // 2 == inspection.num_parameters
    assert inspection.compression_ratio == pytest.approx(inspection.num_parameters * 2 / stored.total)
    assert inspection.ignored_modules == ("lm_head",)
    assert inspect(golden / "base-mistral").compression_ratio == 1.0


def test_unequal_scales_of_fused_layers_are_a_warning(tmp_path: Path) -> None:
    (warning,) = inspect(RandomCheckpoint(layout="modelopt", num_layers=3).write(tmp_path)).warnings
    assert warning.startswith("6 groups of layers that share an input have unequal global scales")
    assert "model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj" in warning


def test_tensorrt_llm_is_not_promised(golden: Path) -> None:
    verdicts = {verdict.engine: verdict for verdict in inspect(golden / "mistral-mxfp4-ct").engines}
    assert verdicts["cpu"].runs
    assert not verdicts["trtllm"].runs
    assert "conversion to NVFP4" in verdicts["trtllm"].reason


@pytest.fixture
def app() -> typer.Typer:
    application = typer.Typer()
    application.callback()(lambda: None)
    register(application)
    return application


def test_inspect_command_prints_json(app: typer.Typer, golden: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(golden / "mixtral-nvfp4-modelopt"), "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["layout"] == "modelopt NVFP4"
    assert document["config"]["num_experts"] == 4
    assert document["stored_bytes"]["total"] == sum(
        size for kind, size in document["stored_bytes"].items() if kind != "total"
    )
    assert [engine["engine"] for engine in document["engines"]] == ["cpu", "trtllm", "echo"]


def test_inspect_command_prints_a_table(app: typer.Typer, golden: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(golden / "mistral-nvfp4-ct")])
    assert result.exit_code == 0
    assert "compressed-tensors nvfp4-pack-quantized" in result.stdout
    assert "MistralForCausalLM" in result.stdout


def test_inspect_command_fails_with_one_line(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["inspect"]).exit_code == 2


def test_dense_module_where_fp4_is_declared(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    edit_json(copy / "config.json", lambda config: config["quantization_config"].update(ignore=[]))
    with pytest.raises(MalformedCheckpoint, match="'lm_head': is stored unquantised although"):
        Checkpoint.open(copy)


def test_fp4_module_where_none_is_declared(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    ignore = ["lm_head", r"re:.*\.mlp\.up_proj"]
    edit_json(copy / "config.json", lambda config: config["quantization_config"].update(ignore=ignore))
    with pytest.raises(MalformedCheckpoint, match=r"mlp\.up_proj': is stored in FP4 although"):
        Checkpoint.open(copy)
    edit_json(copy / "config.json", lambda config: config.pop("quantization_config") and None)
    with pytest.raises(MalformedCheckpoint, match="is stored in FP4 although"):
        Checkpoint.open(copy)


def test_wrong_convention_is_refused(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-nvfp4-ct", tmp_path)
    section = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    edit_json(copy / "config.json", lambda config: config.update(quantization_config=section))
    with pytest.raises(MalformedCheckpoint, match="stored as compressed-tensors does it"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["pre_quant_scale", "weight_zero_point", "weight_g_idx"])
def test_tensors_that_would_change_the_numbers_are_refused(golden: Path, tmp_path: Path, name: str) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    extra = {f"{UP}.{name}": ("F32", np.ones(128, np.float32))}
    edit_tensors(copy, lambda tensors: tensors.update(extra))
    with pytest.raises(UnsupportedCheckpoint, match=name):
        Checkpoint.open(copy)


def test_columns_that_are_no_multiple_of_the_group(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    edit_json(copy / "config.json", lambda config: config.update(intermediate_size=100))

    def cut(tensors: Tensors) -> None:
        for name in [name for name in tensors if "gate_proj" in name or "up_proj" in name]:
            dtype, array = tensors[name]
            tensors[name] = (dtype, array[:100])

    edit_tensors(copy, cut)
    with pytest.raises(MalformedCheckpoint, match="has 100 columns; mxfp4 needs a multiple of 32"):
        Checkpoint.open(copy)


def test_an_expert_stored_twice_is_refused(tmp_path: Path) -> None:
    model = RandomCheckpoint(architecture="MixtralForCausalLM", num_experts=2, num_layers=1)
    directory = model.write(tmp_path)
    prefix = "model.layers.0.block_sparse_moe.experts.0"

    def double(tensors: Tensors) -> None:
        tensors[f"{prefix}.up_proj.weight_packed"] = tensors[f"{prefix}.w3.weight_packed"]

    edit_tensors(directory, double)
    with pytest.raises(MalformedCheckpoint, match="holds the same module twice"):
        Checkpoint.open(directory)


def test_fused_experts_are_named(tmp_path: Path) -> None:
    model = RandomCheckpoint(architecture="MixtralForCausalLM", num_experts=2, num_layers=1, layout="plain")
    directory = model.write(tmp_path)

    def fuse(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]
        tensors["model.layers.0.mlp.experts.gate_up_proj"] = ("BF16", np.zeros((2, 4, 4), np.uint16))

    edit_tensors(directory, fuse)
    with pytest.raises(UnsupportedCheckpoint, match="fused into 3-D tensors"):
        Checkpoint.open(directory)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dense_dtypes(tmp_path: Path, dtype: str) -> None:
    random = RandomCheckpoint(layout="plain", dtype=np.dtype(dtype), num_layers=1)
    norm = Checkpoint.open(random.write(tmp_path)).dense("model.norm")
    assert isinstance(norm, DenseTensors)
    assert norm.dtype == {"float16": "F16", "float32": "F32"}[dtype]
    np.testing.assert_array_equal(norm.as_float32(), random.tensors["model.norm.weight"].astype(np.float32))
