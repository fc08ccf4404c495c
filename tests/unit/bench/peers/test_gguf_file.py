"""A checkpoint as a GGUF file, read back by the package that defines the format."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES, Shape
from engines.bench.peers.conversion.gguf_blocks import paired_halves
from engines.bench.peers.conversion.gguf_file import WEIGHT_TYPES, write_gguf
from engines.bench.peers.system import PeerUnavailable
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import Fp4Tensors


def made(tmp_path: Path, shape: str | Shape = "tiny", format: str = "mxfp4") -> Checkpoint:
    chosen = SHAPES[shape] if isinstance(shape, str) else shape
    make_random_checkpoint(tmp_path / "model", chosen, format, "compressed-tensors")
    return Checkpoint.open(tmp_path / "model")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(path)
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_every_format_in_every_type(tmp_path: Path, format: str, weight_type: str) -> None:
    checkpoint = made(tmp_path, format=format)
    write_gguf(checkpoint, tmp_path / "model.gguf", weight_type)
    tensors = read_tensors(tmp_path / "model.gguf")
    module = checkpoint.linear("model.layers.1.mlp.down_proj")
    assert isinstance(module, Fp4Tensors)
    weight = module.decoded(round_to_bfloat16=False)
    scale = tensors["blk.1.ffn_down.scale"] if weight_type == "nvfp4" else np.float32(1)
    error = np.linalg.norm(tensors["blk.1.ffn_down.weight"] * scale - weight) / np.linalg.norm(weight)
    assert (error < 1e-6) == (weight_type == format)
    assert error < 0.2


def test_queries_and_keys_are_in_the_order_of_llama_cpp(tmp_path: Path) -> None:
    checkpoint = made(tmp_path)
    write_gguf(checkpoint, tmp_path / "model.gguf", "mxfp4")
    tensors = read_tensors(tmp_path / "model.gguf")
    for name, source, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2), ("attn_v", "v_proj", 0)):
        module = checkpoint.linear(f"model.layers.0.self_attn.{source}")
        assert isinstance(module, Fp4Tensors)
        weight = module.decoded(round_to_bfloat16=False)
        if heads:
            weight = paired_halves(weight.view(np.uint8), heads).view(np.float32)
        assert np.array_equal(tensors[f"blk.0.{name}.weight"], weight)


def test_sizes_and_names(tmp_path: Path) -> None:
    checkpoint = made(tmp_path)
    write_gguf(checkpoint, tmp_path / "model.gguf", "mxfp4")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["llama.vocab_size"].contents() == 512
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.model"].contents() == "none"
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output.weight", "output_norm.weight", "blk.1.ffn_gate.weight"} <= names
    assert len(names) == 3 + 2 * 9
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]


def test_experts_are_stacked(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, "tiny-moe", "nvfp4")
    with pytest.raises(
        PeerUnavailable, match=r"ffn_down_exps.weight has 96 columns; .*nvfp4 needs a multiple of 64"
    ):
        write_gguf(checkpoint, tmp_path / "model.gguf", "nvfp4")
    write_gguf(checkpoint, tmp_path / "model.gguf", "mxfp4")
    tensors = read_tensors(tmp_path / "model.gguf")
    assert tensors["blk.0.ffn_up_exps.weight"].shape == (4, 96, 64)
    assert tensors["blk.0.ffn_gate_inp.weight"].shape == (4, 64)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["llama.expert_used_count"].contents() == 2


def test_each_expert_has_its_own_scale(tmp_path: Path) -> None:
    shape = Shape(64, 128, 1, 4, 2, vocab_size=512, num_experts=4)
    checkpoint = made(tmp_path, shape, "nvfp4")
    write_gguf(checkpoint, tmp_path / "model.gguf", "nvfp4")
    expert = checkpoint.expert(0, 3, "down")
    assert isinstance(expert, Fp4Tensors)
    assert expert.global_scale is not None
    scales = read_tensors(tmp_path / "model.gguf")["blk.0.ffn_down_exps.scale"]
    assert scales.shape == (4,)
    assert scales[3] == pytest.approx(1 / expert.global_scale)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PeerUnavailable, match=r"pip install 'nybble\[peers\]'"):
        write_gguf(made(tmp_path), tmp_path / "model.gguf", "mxfp4")
    assert not (tmp_path / "model.gguf").exists()


def test_positions_that_the_file_would_not_say_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    config = tmp_path / "model" / "config.json"
    text = config.read_text().replace(
        '"rope_theta": 1000000.0',
        '"rope_theta": 1000000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}',
    )
    config.write_text(text)
    with pytest.raises(PeerUnavailable, match="rotary positions of kind 'linear'"):
        write_gguf(Checkpoint.open(tmp_path / "model"), tmp_path / "model.gguf", "mxfp4")
