"""Small random checkpoints in every layout, dialect and architecture that the reader accepts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from engines.fp4 import mxfp4, nvfp4

_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "uint8": "U8", "float8_e4m3fn": "F8_E4M3"}


@dataclass
class RandomCheckpoint:
    """What `write` is to write. `layout`: "mxfp4", "nvfp4" (compressed-tensors), "modelopt" or "plain"."""

    layout: str = "mxfp4"
    architecture: str = "MistralForCausalLM"
    hidden_size: int = 96
    intermediate_size: int = 160
    num_layers: int = 2
    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 32
    vocab_size: int = 71
    num_experts: int = 0
    hub_expert_names: bool = True
    max_position_embeddings: int = 256
    sliding_window: int | None = None
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_theta": 10000.0})
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    dtype: Any = ml_dtypes.bfloat16
    dense: tuple[str, ...] = ("lm_head", "*block_sparse_moe.gate")
    quantize_activations: bool = True
    unequal_scales: bool = False
    num_shards: int = 1
    seed: int = 0
    tensors: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def write(self, directory: Path) -> Path:
        """Write config.json and the weights into `directory`, and return it."""
        self._random = np.random.default_rng(self.seed)
        self.tensors = {}
        self._fill()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config()))
        names = list(self.tensors)
        if self.num_shards == 1:
            write_safetensors(directory / "model.safetensors", self.tensors)
            return directory
        weight_map = {}
        for index in range(self.num_shards):
            file_name = f"model-{index + 1:05}-of-{self.num_shards:05}.safetensors"
            chosen = names[index :: self.num_shards]
            weight_map.update(dict.fromkeys(chosen, file_name))
            write_safetensors(directory / file_name, {name: self.tensors[name] for name in chosen})
        index_json = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
        return directory

    def config(self) -> dict[str, Any]:
        """config.json, with the quantisation that `layout` declares."""
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "dtype": np.dtype(self.dtype).name,
            **self.rope,
        }
        if self.num_experts:
            config |= {"num_local_experts": self.num_experts, "num_experts_per_tok": 2}
        quantization = self._quantization()
        return config | ({"quantization_config": quantization} if quantization else {})

    def _quantization(self) -> dict[str, Any] | None:
        if self.layout == "plain":
            return None
        if self.layout == "modelopt":
            group = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
            groups = {"group_0": {"input_activations": group, "weights": group, "targets": ["Linear"]}}
            ignore = list(self.dense)
            return {
                "config_groups": groups,
                "ignore": ignore,
                "quant_algo": "NVFP4",
                "quant_method": "modelopt",
            }
        group_size, strategy = (32, "group") if self.layout == "mxfp4" else (16, "tensor_group")
        scheme = {"group_size": group_size, "num_bits": 4, "strategy": strategy, "type": "float"}
        activations = scheme | {"dynamic": True if self.layout == "mxfp4" else "local", "symmetric": True}
        weights = scheme | {"dynamic": False, "symmetric": True}
        format_name = f"{self.layout}-pack-quantized"
        group_0 = {
            "format": format_name,
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations if self.quantize_activations else None,
        }
        patterns = ["re:" + pattern.replace(".", r"\.").replace("*", ".*") for pattern in self.dense]
        return {
            "config_groups": {"group_0": group_0},
            "format": format_name,
            "ignore": patterns,
            "quant_method": "compressed-tensors",
        }

    def _fill(self) -> None:
        self._dense("model.embed_tokens", self.vocab_size, self.hidden_size, sigma=1.0)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            self._norm(f"{prefix}.input_layernorm")
            self._norm(f"{prefix}.post_attention_layernorm")
            width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            attention = f"{prefix}.self_attn"
            for name, rows in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
                self._linear(f"{attention}.{name}", rows, self.hidden_size, bias=self.attention_bias)
            self._linear(f"{attention}.o_proj", self.hidden_size, width, bias=self.attention_bias)
            self._feed_forward(prefix)
        self._norm("model.norm")
        if not self.tie_word_embeddings:
            self._linear("lm_head", self.vocab_size, self.hidden_size)

    def _feed_forward(self, prefix: str) -> None:
        if not self.num_experts:
            return self._gated(f"{prefix}.mlp", ("gate_proj", "up_proj", "down_proj"))
        block = f"{prefix}.block_sparse_moe"
        self._linear(f"{block}.gate", self.num_experts, self.hidden_size)
        names = ("w1", "w3", "w2") if self.hub_expert_names else ("gate_proj", "up_proj", "down_proj")
        for expert in range(self.num_experts):
            self._gated(f"{block}.experts.{expert}", names)
        return None

    def _gated(self, prefix: str, names: tuple[str, str, str]) -> None:
        gate, up, down = names
        self._linear(f"{prefix}.{gate}", self.intermediate_size, self.hidden_size)
        self._linear(f"{prefix}.{up}", self.intermediate_size, self.hidden_size)
        self._linear(f"{prefix}.{down}", self.hidden_size, self.intermediate_size)

    def _norm(self, name: str) -> None:
        values = self._random.normal(1.0, 0.1, self.hidden_size)
        self.tensors[f"{name}.weight"] = values.astype(self.dtype)

    def _dense(self, name: str, rows: int, columns: int, sigma: float = 0.08) -> None:
        values = self._random.normal(0.0, sigma, (rows, columns))
        self.tensors[f"{name}.weight"] = values.astype(self.dtype)

    def _linear(self, name: str, rows: int, columns: int, *, bias: bool = False) -> None:
        if bias:
            self.tensors[f"{name}.bias"] = self._random.normal(0, 0.1, rows).astype(self.dtype)
        if self.layout == "plain" or any(fnmatch(name, pattern) for pattern in self.dense):
            return self._dense(name, rows, columns)
        weight = self._random.normal(0.0, 0.08, (rows, columns)).astype(self.dtype).astype(np.float32)
        # An input scale per module, as calibration gives, or one for all that share an input.
        amax = np.float32(self._random.uniform(2.0, 6.0) if self.unequal_scales else 4.0)
        if self.layout == "mxfp4":
            blocks = mxfp4.quantize(weight)
            self.tensors |= {f"{name}.weight_packed": blocks.packed, f"{name}.weight_scale": blocks.scales}
        elif self.layout == "nvfp4":
            blocks = nvfp4.quantize_weight_compressed_tensors(weight, bfloat16_model=True)
            self.tensors |= {
                f"{name}.weight_packed": blocks.packed,
                f"{name}.weight_scale": blocks.scales.view(ml_dtypes.float8_e4m3fn),
                f"{name}.weight_global_scale": np.array([blocks.global_scale], np.float32),
            }
            if self.quantize_activations:
                self.tensors[f"{name}.input_global_scale"] = np.array([2688 / amax], np.float32)
        else:
            blocks = nvfp4.quantize_weight_modelopt(weight)
            self.tensors |= {
                f"{name}.weight": blocks.packed,
                f"{name}.weight_scale": blocks.scales.view(ml_dtypes.float8_e4m3fn),
                f"{name}.weight_scale_2": np.float32(blocks.global_scale).reshape(()),
                f"{name}.input_scale": np.float32(amax / 2688).reshape(()),
            }
        return None


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The format by hand: header length, JSON header, data in order."""
    header, chunks, offset = {}, [], 0
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(chunks))
