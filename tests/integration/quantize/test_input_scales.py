"""The static input scales, against an independent forward and against the libraries' own.

llm-compressor 0.14 made mistral-nvfp4-ct while its traced model attended without a causal mask: a bfloat16
forward that sees all positions gives its input scales to within one bfloat16 step (1.2 %), a causal one does
not. Ours are those of the causal model, as it is served. modelopt's are causal too, and agree to within the
noise of its bfloat16 forward (1.7 %).
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.support.plain_forward import read_tensors
from tests.support.quantization import quantize_to, read_raw, write_calibration

LINEAR = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


class PlainMistral:
    """base-mistral on whole sequences; `cast` rounds every intermediate result."""

    def __init__(self, directory: Path, cast, *, causal: bool) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = {name: exact(tensor) for name, tensor in read_tensors(directory).items()}
        self.cast, self.causal = cast, causal
        self.maxima: dict[str, float] = {}

    def run(self, ids: list[int]) -> None:
        x = self.tensors["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            branch = self.attention(f"{prefix}.self_attn", self.norm(x, f"{prefix}.input_layernorm"))
            x = self.cast(x + branch)
            normed = self.norm(x, f"{prefix}.post_attention_layernorm")
            gate = self.linear(f"{prefix}.mlp.gate_proj", normed)
            up = self.linear(f"{prefix}.mlp.up_proj", normed)
            inner = self.cast(self.cast(gate / (1 + np.exp(-gate))) * up)
            x = self.cast(x + self.linear(f"{prefix}.mlp.down_proj", inner))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        self.maxima[name] = max(self.maxima.get(name, 0.0), float(np.abs(x).max()))
        return self.cast(x @ self.tensors[f"{name}.weight"].T)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return self.cast(self.cast(exact(x * scale)) * self.tensors[f"{name}.weight"])

    def attention(self, prefix: str, x: np.ndarray) -> np.ndarray:
        dim, length = self.config["head_dim"], x.shape[0]
        q, k, v = (self.linear(f"{prefix}.{n}_proj", x).reshape(length, -1, dim) for n in ("q", "k", "v"))
        q, k = self.rotate(q), self.rotate(k)
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) * np.float32(dim**-0.5)
        if self.causal:
            scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = self.cast(np.einsum("hij,jhd->ihd", weights, v)).reshape(length, -1)
        return self.linear(f"{prefix}.o_proj", attended)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        half, theta = x.shape[-1] // 2, self.config["rope_parameters"]["rope_theta"]
        angles = np.arange(x.shape[0])[:, None] * theta ** (-np.arange(half) / half)
        cos, sin = (self.cast(exact(f(angles)))[:, None, :] for f in (np.cos, np.sin))
        first, second = x[..., :half], x[..., half:]
        turned = np.concatenate([self.cast(-second * sin), self.cast(first * sin)], axis=-1)
        return self.cast(self.cast(x * np.concatenate([cos, cos], axis=-1)) + turned)


def stored_scales(directory: Path, suffix: str) -> dict[str, float]:
    raw = read_raw(directory)
    return {n.removesuffix(suffix): float(a.reshape(())) for n, (_, a) in raw.items() if n.endswith(suffix)}


@pytest.fixture(scope="module")
def mistral_scales(golden, tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("scales")
    calibration = write_calibration(golden, folder / "samples.jsonl")
    quantize_to(
        folder / "made", golden / "base-mistral", "nvfp4", "compressed-tensors", calibration=calibration
    )
    return stored_scales(folder / "made", ".input_global_scale")


def plain_maxima(golden: Path, cast, *, causal: bool) -> dict[str, float]:
    model = PlainMistral(golden / "base-mistral", cast, causal=causal)
    for ids in json.loads((golden / "prompts.json").read_text())["calib_ids"]:
        model.run(ids)
    return model.maxima


def test_ours_are_those_of_the_causal_model(golden, mistral_scales):
    maxima = plain_maxima(golden, exact, causal=True)
    assert set(maxima) == set(mistral_scales)
    for name, amax in maxima.items():
        rounded = float(bfloat16(np.float32(amax)))
        divisor = float(bfloat16(bfloat16(np.float32(1 / rounded)) * np.float32(2688)))
        assert mistral_scales[name] == pytest.approx(divisor, rel=2**-7), name


def test_llm_compressors_are_those_of_a_model_without_a_mask(golden, mistral_scales):
    theirs = stored_scales(golden / "mistral-nvfp4-ct", ".input_global_scale")
    unmasked = plain_maxima(golden, bfloat16, causal=False)
    for name, scale in theirs.items():
        assert 2688 / scale == pytest.approx(unmasked[name], rel=0.015), name
    first = "model.layers.0.self_attn.q_proj"  # reads normed embeddings, which no attention touched
    assert mistral_scales[first] == theirs[first]


def test_modelopts_agree_within_its_bfloat16_noise(golden, tmp_path):
    calibration = write_calibration(golden, tmp_path / "samples.jsonl")
    quantize_to(tmp_path / "made", golden / "base-mixtral", "nvfp4", "modelopt", calibration=calibration)
    ours = stored_scales(tmp_path / "made", ".input_scale")
    theirs = stored_scales(golden / "mixtral-nvfp4-modelopt", ".input_scale")
    assert set(ours) == set(theirs)
    for name, scale in theirs.items():
        assert ours[name] == pytest.approx(scale, rel=0.017), name
    equal = sum(ours[name] == scale for name, scale in theirs.items())
    assert equal > len(theirs) / 2
