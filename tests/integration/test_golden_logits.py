"""The CPU engine's logits against those of the libraries that own the formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.core_logits import all_logits
from tests.support.golden import CHECKPOINTS, read_reference


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("activations", "key"), [("checkpoint", "w4a4"), ("bf16", "w4a16")])
@pytest.mark.parametrize("chunk", [48, 7, 1])
def test_reference_numerics_match_the_library(
    golden: Path, name: str, activations: str, key: str, chunk: int
) -> None:
    reference = read_reference(golden / name)
    expected = reference[f"logits_{key}_f32"][0]
    token_ids = reference["input_ids"][0].tolist()
    logits = all_logits(golden / name, token_ids, activations=activations, numerics="reference", chunk=chunk)
    stable = reference["jitter_maxdiff_f32"] < 1e-3
    assert stable.sum() >= 47
    assert np.abs(logits - expected).max(axis=-1)[stable].max() < 1e-3
    assert np.array_equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_missing_activation_quantisation_would_show(golden: Path, name: str) -> None:
    reference = read_reference(golden / name)
    token_ids = reference["input_ids"][0].tolist()
    logits = all_logits(golden / name, token_ids, activations="bf16", numerics="reference", chunk=48)
    assert np.abs(logits - reference["logits_w4a4_f32"][0]).max(axis=-1).min() > 0.5
