"""Quantizing a demo master: fused matrices share their scales, all is readable, nothing is written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.checkpoint.safetensors_writer import write_safetensors
from engines.fp4 import bfloat16, mxfp4, nvfp4
from engines.fp4.nvfp4 import Convention
from examples.demo_model import export as exporting
from examples.demo_model.checkpoint_files import SIDE_FILES, write_json

HIDDEN, INTERMEDIATE, KV, VOCAB, EXPERTS = 64, 128, 32, 2048, 3
SHIPPED = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoints" / "mistral-mxfp4"


def module_shapes(kind: str) -> dict[str, tuple[int, int]]:
    attention = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV, HIDDEN),
        "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
    }
    wide, narrow = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    if kind == "mistral":
        return attention | {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": narrow}
    experts = {
        f"block_sparse_moe.experts.{expert}.{part}": narrow if part == "w2" else wide
        for expert in range(EXPERTS)
        for part in ("w1", "w2", "w3")
    }
    return attention | experts


@pytest.fixture(params=["mistral", "mixtral"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def master(kind: str, tmp_path: Path) -> Path:
    """One layer of random weights, with the small files that an export copies."""
    random = np.random.Generator(np.random.PCG64(3))
    directory = tmp_path / "master"
    directory.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN)}
    shapes |= {f"model.layers.0.{module}": shape for module, shape in module_shapes(kind).items()}
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    shapes |= dict.fromkeys(norms, (HIDDEN,))
    if kind == "mixtral":
        shapes["model.layers.0.block_sparse_moe.gate"] = (EXPERTS, HIDDEN)
    entries = []
    for number, (module, shape) in enumerate(shapes.items()):
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.05 + 0.01 * number)
        entries.append((f"{module}.weight", "BF16", shape, bfloat16.encode(values).tobytes()))
    write_safetensors(directory / "model.safetensors", entries, {"format": "pt"})
    config = {
        "architectures": ["MixtralForCausalLM" if kind == "mixtral" else "MistralForCausalLM"],
        "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2, "head_dim": 32, "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "max_position_embeddings": 64,
        "model_type": kind, "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
        "sliding_window": None, "tie_word_embeddings": False, "vocab_size": VOCAB,
    }  # fmt: skip
    if kind == "mixtral":
        config |= {"num_experts_per_tok": 2, "num_local_experts": EXPERTS}
    write_json(directory / "config.json", config)
    for name in (*SIDE_FILES, "training.json"):
        shutil.copyfile(SHIPPED / name, directory / name)
    return directory


def test_weights_are_the_master_s_rounded_to_nearest(kind: str, master: Path, tmp_path: Path) -> None:
    destination = tmp_path / "exported"
    exporting.main([str(master), str(destination)])
    checkpoint = Checkpoint.open(destination)
    before, after = SafetensorsFile(master / "model.safetensors"), checkpoint.tensors
    expected = Layout.COMPRESSED_TENSORS_MXFP4 if kind == "mistral" else Layout.MODELOPT_NVFP4
    assert checkpoint.layout is expected
    for module in module_shapes(kind):
        name = f"model.layers.0.{module}"
        weight = bfloat16.decode(before.view(f"{name}.weight"))
        if kind == "mistral":
            decoded = mxfp4.dequantize(
                after.view(f"{name}.weight_packed"), after.view(f"{name}.weight_scale")
            )
        else:
            scale = float(after.view(f"{name}.weight_scale_2"))
            packed, scales = after.view(f"{name}.weight"), after.view(f"{name}.weight_scale")
            decoded = nvfp4.dequantize(packed, scales, scale, Convention.MODELOPT)
        error = np.square(decoded - weight).mean() / np.square(weight).mean()
        assert 0.001 < error < 0.02
    assert (destination / "training.json").read_bytes() == (master / "training.json").read_bytes()
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        np.testing.assert_array_equal(after.view(name), before.view(name))


@pytest.mark.parametrize("kind", ["mixtral"])
def test_fused_matrices_share_their_scales(kind: str, master: Path, tmp_path: Path) -> None:
    exporting.export(master, tmp_path / "exported")
    tensors = Checkpoint.open(tmp_path / "exported").tensors

    def scales(module: str) -> tuple[float, float]:
        name = f"model.layers.0.{module}"
        return float(tensors.view(f"{name}.weight_scale_2")), float(tensors.view(f"{name}.input_scale"))

    attention = [scales(f"self_attn.{part}_proj") for part in "qkvo"]
    assert attention[0] == attention[1] == attention[2]
    assert attention[3] != attention[0]
    experts = [
        [scales(f"block_sparse_moe.experts.{e}.w{part}") for part in (1, 2, 3)] for e in range(EXPERTS)
    ]
    assert all(w1 == w3 for w1, _, w3 in experts)
    assert len({w1[0] for w1, _, _ in experts}) == EXPERTS
    assert len({w1[1] for w1, _, _ in experts}) == 1
    assert len({w2[1] for _, w2, _ in experts}) == 1


def test_nothing_is_written_over(
    kind: str, master: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(SystemExit, match="1"):
        exporting.main([str(master), str(tmp_path / "thesis")])
    assert "thesis: exists already" in capsys.readouterr().err
    assert list((tmp_path / "thesis").iterdir()) == []
