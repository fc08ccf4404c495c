"""The CPU engine against an independent NumPy forward, on what no golden checkpoint covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoint_variants import VARIANTS
from tests.support.core_logits import all_logits
from tests.support.golden import read_reference
from tests.support.plain_forward import PlainModel


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("activations", ["checkpoint", "bf16"])
def test_reference_numerics_equal_the_plain_forward(tmp_path: Path, name: str, activations: str) -> None:
    variant = VARIANTS[name]
    directory = variant.write(tmp_path / "model")
    token_ids = np.random.default_rng(7).integers(0, variant.vocab_size, 40).tolist()
    quantize = activations == "checkpoint" and variant.quantize_activations
    expected = PlainModel(directory, quantize).logits(token_ids)
    logits = all_logits(directory, token_ids, activations=activations, numerics="reference", chunk=16)
    # Rounding noise can push an activation over an FP4 boundary; one such flip moves a few rows, no more.
    close = np.abs(logits - expected).max(axis=-1) < 2e-3
    assert close.mean() >= (0.9 if quantize else 1.0)


@pytest.mark.parametrize("name", ["mistral-mxfp4-ct", "mixtral-nvfp4-modelopt"])
def test_the_plain_forward_itself_matches_the_golden_logits(golden: Path, name: str) -> None:
    reference = read_reference(golden / name)
    logits = PlainModel(golden / name).logits(reference["input_ids"][0].tolist())
    stable = reference["jitter_maxdiff_f32"] < 1e-3
    assert np.abs(logits - reference["logits_w4a4_f32"][0]).max(axis=-1)[stable].max() < 1e-3
