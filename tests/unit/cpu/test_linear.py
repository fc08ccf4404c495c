"""Which product a module gets, and when modules that share an input share it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.linear import (
    BiasedLinear,
    DenseLinear,
    Fp4LinearRounded,
    Fp4LinearW4A4,
    Fp4LinearW4A16,
    LinearOptions,
    StackedLinear,
    build_linear,
)
from engines.cpu.workspace import Workspace
from engines.errors import MalformedCheckpoint
from tests.support.random_checkpoint import RandomCheckpoint

EXACT = LinearOptions(quantize_activations=True, reference_numerics=False)
REFERENCE = LinearOptions(quantize_activations=True, reference_numerics=True)
WEIGHTS_ONLY = LinearOptions(quantize_activations=False, reference_numerics=True)


def qkv(directory: Path, variant: RandomCheckpoint) -> list:
    checkpoint = Checkpoint.open(variant.write(directory / "model"))
    return [checkpoint.linear(f"model.layers.0.self_attn.{name}_proj") for name in "qkv"]


@pytest.mark.parametrize(
    ("layout", "options", "kind"),
    [
        ("mxfp4", EXACT, Fp4LinearW4A4),
        ("mxfp4", REFERENCE, Fp4LinearW4A4),
        ("mxfp4", WEIGHTS_ONLY, Fp4LinearW4A16),
        ("nvfp4", EXACT, Fp4LinearW4A4),
        ("nvfp4", REFERENCE, Fp4LinearRounded),
        ("nvfp4", WEIGHTS_ONLY, Fp4LinearW4A16),
        ("modelopt", REFERENCE, Fp4LinearW4A4),
        ("plain", REFERENCE, DenseLinear),
    ],
)
def test_one_product_for_modules_that_agree(
    tmp_path: Path, layout: str, options: LinearOptions, kind: type
) -> None:
    linear = build_linear(qkv(tmp_path, RandomCheckpoint(layout=layout)), options)
    assert type(linear) is kind
    assert linear.num_rows == (3 + 1 + 1) * 32


def test_unequal_input_scales_keep_a_product_each(tmp_path: Path) -> None:
    modules = qkv(tmp_path, RandomCheckpoint(layout="modelopt", unequal_scales=True))
    stacked = build_linear(modules, EXACT)
    assert type(stacked) is StackedLinear
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    out = np.empty((5, stacked.num_rows), np.float32)
    stacked(x, out, Workspace())
    parts = []
    for module in modules:
        part = np.empty((5, module.num_rows), np.float32)
        build_linear([module], EXACT)(x, part, Workspace())
        parts.append(part)
    assert np.array_equal(out, np.concatenate(parts, axis=1))


def test_unequal_input_scales_do_not_matter_without_activation_quantisation(tmp_path: Path) -> None:
    modules = qkv(tmp_path, RandomCheckpoint(layout="modelopt", unequal_scales=True))
    assert type(build_linear(modules, WEIGHTS_ONLY)) is Fp4LinearW4A16


def test_a_dense_module_among_packed_ones_keeps_its_own_product(tmp_path: Path) -> None:
    variant = RandomCheckpoint(dense=("lm_head", "*.k_proj"))
    assert type(build_linear(qkv(tmp_path, variant), EXACT)) is StackedLinear


def test_biases_are_added(tmp_path: Path) -> None:
    variant = RandomCheckpoint(architecture="LlamaForCausalLM", attention_bias=True)
    modules = qkv(tmp_path, variant)
    linear = build_linear(modules, EXACT)
    assert type(linear) is BiasedLinear
    out = np.empty((1, linear.num_rows), np.float32)
    linear(np.zeros((1, 96), np.float32), out, Workspace())
    assert np.array_equal(out[0], np.concatenate([module.bias for module in modules]))


def test_a_missing_input_scale_is_an_error_only_when_it_is_needed(tmp_path: Path) -> None:
    variant = RandomCheckpoint(layout="modelopt")
    directory = variant.write(tmp_path / "model")
    from tests.support.random_checkpoint import write_safetensors

    kept = {name: tensor for name, tensor in variant.tensors.items() if not name.endswith("input_scale")}
    write_safetensors(directory / "model.safetensors", kept)
    module = Checkpoint.open(directory).linear("model.layers.0.mlp.down_proj")
    with pytest.raises(MalformedCheckpoint, match="--activations bf16"):
        build_linear([module], EXACT)
    assert type(build_linear([module], WEIGHTS_ONLY)) is Fp4LinearW4A16
