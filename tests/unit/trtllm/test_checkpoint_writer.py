"""The writer's bytes against the table of the format, worked out here from the source's raw tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import MalformedCheckpoint
from engines.trtllm.checkpoint_reader import read_back
from engines.trtllm.checkpoint_writer import checkpoint_num_bytes, write_checkpoint
from engines.trtllm.errors import BuildRefused
from tests.support.checkpoint_edits import Tensors, edit_tensors
from tests.support.nvfp4_checkpoint import mistral, mixtral
from tests.support.plain_forward import read_tensors


def written(
    checkpoint: Checkpoint, directory: Path, tensor_parallel: int = 1, kv_cache_dtype: str = "bfloat16"
) -> list[dict[str, np.ndarray]]:
    """The tensors of each rank."""
    directory.mkdir()
    write_checkpoint(checkpoint, directory, tensor_parallel=tensor_parallel, kv_cache_dtype=kv_cache_dtype)
    return [load_rank(directory / f"rank{rank}.safetensors") for rank in range(tensor_parallel)]


def load_rank(path: Path) -> dict[str, np.ndarray]:
    """One rank's file, by the tests' own reader."""
    place = path.parent / "read"
    place.mkdir(exist_ok=True)
    (place / "model.safetensors").write_bytes(path.read_bytes())
    return read_tensors(place)


def raw(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return read_tensors(checkpoint.directory)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize("make", [mistral, mixtral])
def test_every_weight_is_read_back_bit_equal(
    make: Any, tensor_parallel: int, kv_cache_dtype: str, tmp_path: Path
) -> None:
    checkpoint = make(tmp_path, num_layers=2)
    ranks = written(checkpoint, tmp_path / "out", tensor_parallel, kv_cache_dtype)
    per_layer = (25 if make is mixtral else 32) + (2 if kv_cache_dtype == "fp8" else 0)
    assert [len(rank) for rank in ranks] == [per_layer * 2 + 3] * tensor_parallel
    result = read_back(checkpoint, tmp_path / "out")
    assert result.num_fp4_modules == (4 + (9 if make is mixtral else 3)) * 2
    assert result.num_bytes == tensor_parallel * checkpoint_num_bytes(
        checkpoint, tensor_parallel, kv_cache_dtype
    )
    assert result.num_bytes == sum(tensor.nbytes for rank in ranks for tensor in rank.values())


def test_attention_is_sliced_then_joined(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path)
    source, ranks = raw(checkpoint), written(checkpoint, tmp_path / "out", 2)
    q, k, v = (source[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv")
    second = np.concatenate([q[256:], k[128:], v[128:]])
    assert np.array_equal(ranks[1]["transformer.layers.0.attention.qkv.weight"], second)
    o_scales = source["model.layers.0.self_attn.o_proj.weight_scale"]
    stored = ranks[1]["transformer.layers.0.attention.dense.weights_block_scaling_factor"]
    assert np.array_equal(bits(stored), bits(o_scales[:, 16:]))


def test_a_dense_layers_fc_is_gate_proj_and_its_gate_is_up_proj(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path)
    source, (rank,) = raw(checkpoint), written(checkpoint, tmp_path / "out")
    for ours, theirs in (("fc", "gate_proj"), ("gate", "up_proj"), ("proj", "down_proj")):
        assert np.array_equal(
            rank[f"transformer.layers.0.mlp.{ours}.weight"], source[f"model.layers.0.mlp.{theirs}.weight"]
        )


def test_an_experts_fc_is_w3_then_w1_of_the_rank(tmp_path: Path) -> None:
    checkpoint = mixtral(tmp_path)
    source, ranks = raw(checkpoint), written(checkpoint, tmp_path / "out", 2)
    for rank, rows in enumerate((slice(0, 256), slice(256, 512))):
        fc = ranks[rank]["transformer.layers.0.mlp.fc.weight"]
        assert fc.shape == (3, 512, 128)
        for expert in range(3):
            prefix = f"model.layers.0.block_sparse_moe.experts.{expert}"
            w1, w3 = (source[f"{prefix}.{name}.weight"][rows] for name in ("w1", "w3"))
            assert np.array_equal(fc[expert], np.concatenate([w3, w1]))


def test_the_router_is_float32_and_whole_on_every_rank(tmp_path: Path) -> None:
    checkpoint = mixtral(tmp_path)
    gate = raw(checkpoint)["model.layers.0.block_sparse_moe.gate.weight"].astype(np.float32)
    for rank in written(checkpoint, tmp_path / "out", 2):
        stored = rank["transformer.layers.0.mlp.router.weight"]
        assert stored.dtype == np.float32
        assert np.array_equal(stored, gate)


def test_alpha_is_the_float32_product_of_the_largest_input_scale(tmp_path: Path) -> None:
    checkpoint = mixtral(tmp_path, unequal_scales=True)
    source, (rank,) = raw(checkpoint), written(checkpoint, tmp_path / "out")
    inputs = [
        source[f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.input_scale"]
        for expert in range(3)
        for part in ("w1", "w3")
    ]
    activation = rank["transformer.layers.0.mlp.fc.activation_global_scaling_factor"]
    assert len(set(map(float, inputs))) > 1
    assert activation.shape == (1,)
    assert activation[0] == max(inputs)
    expected = [
        source[f"model.layers.0.block_sparse_moe.experts.{expert}.w3.weight_scale_2"] * max(inputs)
        for expert in range(3)
    ]
    assert np.array_equal(rank["transformer.layers.0.mlp.fc.alpha"], np.array(expected, np.float32))
    assert "transformer.layers.0.mlp.fc.weights_global_scaling_factor" not in rank


def test_unequal_scales_a_power_of_two_apart_are_expressed_by_one(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path)

    def shift(tensors: Tensors) -> None:
        """k_proj's numbers stay the same under a quarter of the scale."""
        prefix = "model.layers.0.self_attn.k_proj.weight_scale"
        dtype, scale = tensors[f"{prefix}_2"]
        tensors[f"{prefix}_2"] = (dtype, (scale / 4).astype(np.float32))
        dtype, blocks = tensors[prefix]
        small = np.minimum(blocks.view(ml_dtypes.float8_e4m3fn).astype(np.float32), 64)
        tensors[prefix] = (dtype, (small * 4).astype(ml_dtypes.float8_e4m3fn).view(np.uint8))

    edit_tensors(checkpoint.directory, shift)
    shifted = Checkpoint.open(checkpoint.directory)
    source, (rank,) = raw(shifted), written(shifted, tmp_path / "out")
    name = "transformer.layers.0.attention.qkv"
    (shared,) = rank[f"{name}.weights_global_scaling_factor"]
    assert shared == source["model.layers.0.self_attn.q_proj.weight_scale_2"]
    stored = rank[f"{name}.weights_block_scaling_factor"][512:768].astype(np.float32) * shared
    k_proj = "model.layers.0.self_attn.k_proj"
    before = source[f"{k_proj}.weight_scale"].astype(np.float32) * source[f"{k_proj}.weight_scale_2"]
    assert np.array_equal(stored, before)
    assert read_back(shifted, tmp_path / "out").num_fp4_modules == 7


def test_unequal_scales_that_no_common_one_expresses_are_refused(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path)

    def change(tensors: Tensors) -> None:
        dtype, scale = tensors["model.layers.0.self_attn.v_proj.weight_scale_2"]
        tensors["model.layers.0.self_attn.v_proj.weight_scale_2"] = (dtype, (scale * 1.1).astype(np.float32))

    edit_tensors(checkpoint.directory, change)
    with pytest.raises(BuildRefused, match=r"q_proj.*unequal weight_scale_2.*v_proj"):
        written(Checkpoint.open(checkpoint.directory), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_attention_that_is_not_quantised_is_excluded_by_its_target_names(tmp_path: Path) -> None:
    checkpoint = mixtral(tmp_path, dense=("lm_head", "*block_sparse_moe.gate", "*self_attn*"), num_layers=2)
    source, ranks = raw(checkpoint), written(checkpoint, tmp_path / "out", 2)
    assert len(ranks[0]) == 15 * 2 + 3
    excluded = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["exclude_modules"]
    assert excluded == [
        "*lm_head",
        "*router",
        "*vocab_embedding",
        *(f"transformer.layers.{layer}.attention.{name}" for layer in (0, 1) for name in ("qkv", "dense")),
    ]
    o_proj = source["model.layers.0.self_attn.o_proj.weight"]
    stored = ranks[1]["transformer.layers.0.attention.dense.weight"]
    assert np.array_equal(bits(stored), bits(o_proj[:, 256:]))
    assert read_back(checkpoint, tmp_path / "out").num_fp4_modules == 18


def test_experts_that_are_not_quantised_are_excluded_together(tmp_path: Path) -> None:
    dense = ("lm_head", "*block_sparse_moe.gate", "*experts*")
    checkpoint = mixtral(tmp_path, dense=dense)
    (rank,) = written(checkpoint, tmp_path / "out")
    assert rank["transformer.layers.0.mlp.fc.weight"].shape == (3, 1024, 256)
    excluded = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["exclude_modules"]
    assert excluded[3:] == ["transformer.layers.0.mlp"]
    read_back(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("dense", [("lm_head", "*gate", "*k_proj"), ("lm_head", "*gate", "*experts.1.*")])
def test_partly_quantised_groups_are_refused(tmp_path: Path, dense: tuple[str, ...]) -> None:
    checkpoint = mixtral(tmp_path, dense=dense)
    with pytest.raises(BuildRefused, match="not stored alike"):
        written(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "tensor_parallel", "message"),
    [
        ({"layout": "mxfp4"}, 1, "nybble convert --to nvfp4-modelopt"),
        ({"layout": "nvfp4"}, 1, "nybble convert --to nvfp4-modelopt"),
        ({"dense": ("*gate",)}, 1, "lm_head"),
        ({}, 8, "4 KV heads cannot be shared"),
        ({}, 3, "cannot be shared"),
        ({"intermediate_size": 192}, 1, "whole multiples of 128"),
        (
            {"head_dim": 96, "num_heads": 4, "num_kv_heads": 4, "intermediate_size": 1024},
            4,
            "whole multiples",
        ),
        ({"dtype": np.float16}, 1, "expected BF16"),
        ({"rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}}, 1, "rope scaling 'linear'"),
        ({"architecture": "LlamaForCausalLM", "attention_bias": True}, 1, "has a bias"),
    ],
)
def test_what_the_format_cannot_carry_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], tensor_parallel: int, message: str
) -> None:
    checkpoint = mistral(tmp_path, **changes)
    with pytest.raises(BuildRefused, match=message):
        written(checkpoint, tmp_path / "out", tensor_parallel)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_input_scale_is_refused(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path)
    edit_tensors(
        checkpoint.directory, lambda tensors: tensors.pop("model.layers.0.mlp.down_proj.input_scale") and None
    )
    with pytest.raises(BuildRefused, match="down_proj: has no input scale"):
        written(Checkpoint.open(checkpoint.directory), tmp_path / "out")


def test_a_tied_head_is_a_copy_and_odd_vocabularies_are_padded_with_zeros(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path, tie_word_embeddings=True, vocab_size=71)
    ranks = written(checkpoint, tmp_path / "out", 2)
    embedding = raw(checkpoint)["model.embed_tokens.weight"]
    head = np.concatenate([rank["lm_head.weight"] for rank in ranks])
    assert [rank["lm_head.weight"].shape for rank in ranks] == [(36, 256)] * 2
    assert np.array_equal(bits(head[:71]), bits(embedding))
    assert not bits(head[71:]).any()
    assert all(np.array_equal(bits(r["transformer.vocab_embedding.weight"]), bits(embedding)) for r in ranks)
    read_back(checkpoint, tmp_path / "out")


def test_kv_cache_scales_are_the_larger_of_k_and_v_and_their_reciprocal(tmp_path: Path) -> None:
    checkpoint = mistral(tmp_path, num_layers=2)

    def add(tensors: Tensors) -> None:
        for name, value in (("k", 0.03), ("v", 0.07)):
            scale = np.array(value, np.float32)
            tensors[f"model.layers.1.self_attn.{name}_proj.{name}_scale"] = ("F32", scale)

    edit_tensors(checkpoint.directory, add)
    (rank,) = written(Checkpoint.open(checkpoint.directory), tmp_path / "out", 1, "fp8")
    name = "attention.kv_cache_{}scaling_factor"
    for layer, expected in enumerate((np.float32(1), np.float32(0.07))):
        prefix = f"transformer.layers.{layer}"
        assert rank[f"{prefix}.{name.format('')}"] == expected
        assert rank[f"{prefix}.{name.format('rcp_')}"] == np.float32(1) / expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("transformer.layers.0.mlp.fc.weight", lambda array: array ^ 1),
        ("transformer.layers.0.mlp.fc.alpha", lambda array: array * 2),
        ("transformer.layers.0.attention.qkv.alpha", lambda array: array * 2),
        ("transformer.layers.0.attention.qkv.weights_global_scaling_factor", lambda array: array * 2),
        ("transformer.layers.0.mlp.proj.weights_block_scaling_factor", lambda array: array ^ 1),
        (
            "transformer.layers.0.mlp.proj.weights_block_scaling_factor_interleaved",
            lambda array: array[:, ::-1],
        ),
        ("transformer.layers.0.mlp.router.weight", lambda array: array + 1),
        ("lm_head.weight", lambda array: array ^ 1),
        ("transformer.ln_f.weight", None),
    ],
)
def test_reading_back_finds_a_change(tmp_path: Path, tensor: str, change: Any) -> None:
    checkpoint = mixtral(tmp_path)
    written(checkpoint, tmp_path / "out")
    (tmp_path / "out" / "rank0.safetensors").rename(tmp_path / "out" / "model.safetensors")

    def edit(tensors: Tensors) -> None:
        dtype, array = tensors.pop(tensor)
        if change is not None:
            tensors[tensor] = (dtype, np.ascontiguousarray(change(array)))

    edit_tensors(tmp_path / "out", edit)
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "rank0.safetensors")
    with pytest.raises(MalformedCheckpoint):
        read_back(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_config_json_of_a_mixture_has_the_published_keys(tmp_path: Path, tensor_parallel: int) -> None:
    checkpoint = mixtral(
        tmp_path, rope={"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
    )
    written(checkpoint, tmp_path / "out", tensor_parallel)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {
        "architecture": "MixtralForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": 71,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_size": 64,
        "hidden_act": "swiglu",
        "norm_epsilon": 1e-05,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 256,
        "rotary_base": 1000000.0,
        "rotary_scaling": None,
        "attn_bias": False,
        "mlp_bias": False,
        "residual_mlp": False,
        "qk_layernorm": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": False,
        "moe": {"num_experts": 3, "top_k": 2, "normalization_mode": 1, "tp_mode": 0},
        "mapping": {
            "world_size": tensor_parallel,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": tensor_parallel,
            "pp_size": 1,
            "moe_tp_size": tensor_parallel,
            "moe_ep_size": 1,
        },
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": 16,
            "smoothquant_val": 0.5,
            "clamp_val": None,
            "use_meta_recipe": False,
            "has_zero_point": False,
            "pre_quant_scale": False,
            "exclude_modules": ["*lm_head", "*router", "*vocab_embedding"],
        },
    }


def test_a_dense_model_is_silu_and_has_no_moe(tmp_path: Path) -> None:
    written(mistral(tmp_path), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hidden_act"] == "silu"
    assert "moe" not in config


def test_the_golden_mixtrals_of_both_modelopt_releases(golden: Path, tmp_path: Path) -> None:
    for name in ("mixtral-nvfp4-modelopt", "mixtral-nvfp4-modelopt041"):
        checkpoint = Checkpoint.open(golden / name)
        for tensor_parallel in (1, 2):
            out = tmp_path / f"{name}-{tensor_parallel}"
            written(checkpoint, out, tensor_parallel)
            assert read_back(checkpoint, out).num_fp4_modules == 2 * (4 + 4 * 3)
