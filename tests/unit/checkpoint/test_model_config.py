"""config.json and generation_config.json -> ModelConfig, in the spellings of several writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.model_config import ModelConfig, read_model_config
from engines.checkpoint.rope_config import RopeConfig
from engines.errors import CheckpointError, MalformedCheckpoint, UnsupportedCheckpoint

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(directory: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    merged = {key: value for key, value in (BASE | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(merged))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_model_config(directory)[0]


def test_sizes_and_defaults(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 32)
    assert config.rope == RopeConfig(10000.0)
    assert not config.tie_word_embeddings
    assert (config.num_experts, config.num_experts_per_token) == (0, 0)
    assert config.sliding_window is None


def test_explicit_head_dim_wins_and_absent_kv_heads_mean_all(tmp_path: Path) -> None:
    config = read(tmp_path, head_dim=64, num_key_value_heads=...)
    assert (config.head_dim, config.num_kv_heads) == (64, 4)


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, None, {2}),
        (2, {"eos_token_id": [2, 7]}, {2, 7}),
        (..., {"eos_token_id": 5}, {5}),
        ([3, 4], {}, {3, 4}),
        (None, {"eos_token_id": None}, set()),
    ],
)
def test_end_of_sequence_ids_are_joined(tmp_path: Path, config_eos, generation, expected) -> None:
    assert read(tmp_path, generation, eos_token_id=config_eos).eos_token_ids == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 500000, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, RopeConfig(1e6)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            RopeConfig(1e4, "linear", 2.0),
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4}},
            RopeConfig(1e4, "linear", 4.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192),
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192),
        ),
    ],
)
def test_rope_spellings(tmp_path: Path, fields: dict[str, Any], expected: RopeConfig) -> None:
    assert read(tmp_path, **fields).rope == expected


def test_mixtral_has_its_own_default_theta(tmp_path: Path) -> None:
    config = read(tmp_path, architectures=["MixtralForCausalLM"], num_local_experts=4, num_experts_per_tok=2)
    assert config.rope.theta == 1e6
    assert (config.num_experts, config.num_experts_per_token) == (4, 2)


@pytest.mark.parametrize(
    ("architecture", "window", "expected"),
    [
        ("MistralForCausalLM", 4096, 4096),
        ("MistralForCausalLM", None, None),
        ("MistralForCausalLM", ..., 4096),
        ("LlamaForCausalLM", 4096, None),
    ],
)
def test_sliding_window(tmp_path: Path, architecture: str, window, expected) -> None:
    assert read(tmp_path, architectures=[architecture], sliding_window=window).sliding_window == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            UnsupportedCheckpoint,
            "MistralForCausalLM, MixtralForCausalLM",
        ),
        ({"architectures": []}, MalformedCheckpoint, "expected one name"),
        ({"architectures": ...}, MalformedCheckpoint, "architectures is None"),
        ({"hidden_act": "gelu"}, UnsupportedCheckpoint, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, UnsupportedCheckpoint, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, UnsupportedCheckpoint, "'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            MalformedCheckpoint,
            "high_freq_factor 4.0 must be above low_freq_factor 4.0",
        ),
        ({"rope_scaling": {"type": "linear"}}, MalformedCheckpoint, "needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, MalformedCheckpoint, "factor.*greater than 0"),
        ({"rope_scaling": "linear"}, MalformedCheckpoint, "expected an object or null"),
        ({"rope_theta": "big"}, MalformedCheckpoint, "rope_theta.*'big'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedCheckpoint, "partial_rotary_factor is 0.5"),
        ({"num_attention_heads": 3}, MalformedCheckpoint, "128 is no multiple of num_attention_heads 3"),
        ({"num_key_value_heads": 3}, MalformedCheckpoint, "4 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 33}, MalformedCheckpoint, "head_dim is 33"),
        ({"hidden_size": ...}, MalformedCheckpoint, "hidden_size: Field required"),
        ({"hidden_size": 0}, MalformedCheckpoint, r"hidden_size.*got 0"),
        ({"hidden_size": "128"}, MalformedCheckpoint, "hidden_size.*'128'"),
        ({"num_hidden_layers": 10**9}, MalformedCheckpoint, "num_hidden_layers.*1000000000"),
        ({"vocab_size": 10**12}, MalformedCheckpoint, "vocab_size"),
        ({"rms_norm_eps": -1e-5}, MalformedCheckpoint, "rms_norm_eps"),
        ({"eos_token_id": 320}, MalformedCheckpoint, "eos_token_id 320 is outside the vocabulary of 320"),
        ({"eos_token_id": -1}, MalformedCheckpoint, "eos_token_id -1"),
        ({"architectures": ["MixtralForCausalLM"]}, MalformedCheckpoint, "needs num_local_experts"),
    ],
)
def test_refusals(
    tmp_path: Path, changes: dict[str, Any], error: type[CheckpointError], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        read(tmp_path, **changes)
    assert type(raised.value) is error
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a JSON list"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MalformedCheckpoint, match=message):
        read_model_config(tmp_path)


def test_a_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(BASE).encode())
    assert read_model_config(tmp_path)[0].hidden_size == 128


def test_an_absent_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedCheckpoint, match=r"config\.json: cannot be read \(No such file"):
        read_model_config(tmp_path)
