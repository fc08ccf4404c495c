"""A second, independent forward pass: whole sequences, plain NumPy, no code shared with the engine.

Reads the files through the safetensors library and ml_dtypes. Slow and simple on purpose: it judges the
engine on checkpoints for which no library can give golden logits (see tests/golden/README.md for those).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

f32 = np.float32
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], f32)
_MIDPOINTS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], f32)
_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of every shard, by name."""
    tensors = {}
    for path in sorted(directory.glob("model*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _round_e2m1(values: np.ndarray) -> np.ndarray:
    magnitude = np.abs(values)
    index = np.zeros(values.shape, int)
    for step, midpoint in enumerate(_MIDPOINTS):
        index += (magnitude > midpoint) | ((magnitude == midpoint) & (step % 2 == 1))
    return np.copysign(_E2M1[index], values)


def _unpack(packed: np.ndarray) -> np.ndarray:
    codes = np.stack([packed & 15, packed >> 4], axis=-1)
    return _E2M1[codes.reshape(*packed.shape[:-1], -1)]


def _quantize_mxfp4(x: np.ndarray) -> np.ndarray:
    blocks = x.reshape(-1, 32)
    bits = np.abs(blocks).max(-1).astype(f32).view(np.uint32) + (1 << 21)
    stored = np.clip(((bits >> 23) & 255).astype(int) - 2, 0, 255)
    scale = np.ldexp(f32(1), stored - 127).astype(f32)[:, None]
    return (_round_e2m1(blocks / scale) * scale).reshape(x.shape)


def _quantize_nvfp4(x: np.ndarray, stored_scale: np.float32, modelopt: bool) -> np.ndarray:
    blocks = x.reshape(-1, 16)
    amax = np.abs(blocks).max(-1)
    if modelopt:
        wanted = np.clip(amax / (f32(6) * stored_scale), f32(2**-9), 448)
        local = np.where(amax == 0, f32(1), wanted).astype(ml_dtypes.float8_e4m3fn).astype(f32)
        scale = (local * stored_scale).astype(f32)
    else:
        wanted = np.clip(stored_scale * (amax / f32(6)), -448, 448).astype(f32)
        local = wanted.astype(ml_dtypes.float8_e4m3fn).astype(f32)
        scale = (np.where(local == 0, f32(0.125), local) / stored_scale).astype(f32)
    return (_round_e2m1((blocks / scale[:, None]).astype(f32)) * scale[:, None]).reshape(x.shape).astype(f32)


@dataclass
class PlainModel:
    """The model of `directory`, computed in float32; `quantize_activations` chooses W4A4 or W4A16."""

    directory: Path
    quantize_activations: bool = True

    def __post_init__(self) -> None:
        self.tensors = read_tensors(self.directory)
        self.config: dict[str, Any] = json.loads((self.directory / "config.json").read_text())

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """float32 [len(token_ids), vocab_size]."""
        x = self.tensors["model.embed_tokens.weight"][np.asarray(token_ids)].astype(f32)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn")
            x = x + self._feed_forward(self._norm(x, f"{prefix}.post_attention_layernorm"), prefix)
        x = self._norm(x, "model.norm")
        if self.config.get("tie_word_embeddings"):
            return x @ self.tensors["model.embed_tokens.weight"].astype(f32).T
        return self._linear(x, "lm_head")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean_square = (x * x).mean(-1, keepdims=True, dtype=f32)
        scaled = x * (f32(1) / np.sqrt(mean_square + f32(self.config["rms_norm_eps"])))
        return self.tensors[f"{name}.weight"].astype(f32) * scaled

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        tensors = self.tensors
        if f"{name}.weight_scale" not in tensors:
            weight = tensors[f"{name}.weight"].astype(f32)
        elif f"{name}.weight_global_scale" in tensors:
            scale = tensors[f"{name}.weight_scale"].astype(f32) / tensors[f"{name}.weight_global_scale"]
            exact = self._decode(tensors[f"{name}.weight_packed"], scale.astype(f32))
            weight = exact.astype(ml_dtypes.bfloat16).astype(f32)  # what the library's decompression gives
            x = self._quantized(x, name, "input_global_scale", modelopt=False)
        elif f"{name}.weight_scale_2" in tensors:
            scale = tensors[f"{name}.weight_scale"].astype(f32) * tensors[f"{name}.weight_scale_2"]
            weight = self._decode(tensors[f"{name}.weight"], scale.astype(f32))
            x = self._quantized(x, name, "input_scale", modelopt=True)
        else:
            scale = np.ldexp(f32(1), tensors[f"{name}.weight_scale"].astype(int) - 127).astype(f32)
            weight = self._decode(tensors[f"{name}.weight_packed"], scale)
            if self.quantize_activations:
                x = _quantize_mxfp4(x)
        y = (x @ weight.T).astype(f32)
        return y + tensors[f"{name}.bias"].astype(f32) if f"{name}.bias" in tensors else y

    @staticmethod
    def _decode(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
        values = _unpack(packed).reshape(*scale.shape, -1) * scale[..., None]
        return values.reshape(scale.shape[0], -1)

    def _quantized(self, x: np.ndarray, name: str, key: str, *, modelopt: bool) -> np.ndarray:
        if not self.quantize_activations:
            return x
        return _quantize_nvfp4(x, self.tensors[f"{name}.{key}"].reshape(()), modelopt)

    def _attention(self, x: np.ndarray, prefix: str) -> np.ndarray:
        config, length = self.config, x.shape[0]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        dim = config.get("head_dim") or config["hidden_size"] // heads
        cos, sin = self._rope(length, dim)

        def rotated(name: str, count: int) -> np.ndarray:
            states = self._linear(x, f"{prefix}.{name}").reshape(length, count, dim)
            halves = np.concatenate([-states[..., dim // 2 :], states[..., : dim // 2]], -1)
            return states * cos[:, None] + halves * sin[:, None]

        q, k = rotated("q_proj", heads), rotated("k_proj", kv_heads)
        v = self._linear(x, f"{prefix}.v_proj").reshape(length, kv_heads, dim)
        k, v = (np.repeat(states, heads // kv_heads, 1) for states in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k).astype(f32) * f32(dim**-0.5)
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        visible = distance >= 0
        window = config.get("sliding_window") if config["model_type"] != "llama" else None
        if window is not None:
            visible &= distance < window
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(length, heads * dim).astype(f32)
        return self._linear(mixed, f"{prefix}.o_proj")

    def _rope(self, length: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        parameters = config.get("rope_parameters") or {
            "rope_theta": config.get("rope_theta", 10000.0),
            **(config.get("rope_scaling") or {"rope_type": "default"}),
        }
        frequencies = 1.0 / (parameters["rope_theta"] ** (np.arange(0, dim, 2, dtype=f32) / dim))
        if parameters["rope_type"] == "linear":
            frequencies = frequencies / parameters["factor"]
        if parameters["rope_type"] == "llama3":
            frequencies = np.array([_llama3(frequency, parameters) for frequency in frequencies])
        angles = np.arange(length, dtype=f32)[:, None] * frequencies.astype(f32)
        doubled = np.concatenate([angles, angles], -1)
        return np.cos(doubled).astype(f32), np.sin(doubled).astype(f32)

    def _feed_forward(self, x: np.ndarray, prefix: str) -> np.ndarray:
        if self.config["model_type"] != "mixtral":
            return self._gated(x, *(f"{prefix}.mlp.{name}_proj" for name in ("gate", "up", "down")))
        block = f"{prefix}.block_sparse_moe"
        logits = self._linear(x, f"{block}.gate")
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        chosen = np.argsort(-probabilities, -1, kind="stable")[:, : self.config["num_experts_per_tok"]]
        weights = np.take_along_axis(probabilities, chosen, -1)
        weights /= weights.sum(-1, keepdims=True)
        y = np.zeros_like(x)
        for expert in range(self.config["num_local_experts"]):
            rows, slots = np.nonzero(chosen == expert)
            if rows.size == 0:
                continue
            names = [f"{block}.experts.{expert}.{name}" for name in ("w1", "w3", "w2")]
            if not any(key.startswith(f"{names[0]}.") for key in self.tensors):
                spelled = ("gate_proj", "up_proj", "down_proj")
                names = [f"{block}.experts.{expert}.{name}" for name in spelled]
            y[rows] += self._gated(x[rows], *names) * weights[rows, slots][:, None]
        return y

    def _gated(self, x: np.ndarray, gate: str, up: str, down: str) -> np.ndarray:
        gated = self._linear(x, gate)
        return self._linear(gated / (1 + np.exp(-gated)) * self._linear(x, up), down)


def _llama3(frequency: float, parameters: dict[str, Any]) -> float:
    """Llama 3.1's scaling of one frequency, by cases."""
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / float(frequency)
    if wavelength < original / high:
        return float(frequency)
    if wavelength > original / low:
        return float(frequency) / parameters["factor"]
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * float(frequency) / parameters["factor"] + smooth * float(frequency)
