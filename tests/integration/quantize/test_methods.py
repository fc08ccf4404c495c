"""What each method gains on the golden models, measured on logits; and that its files are plain ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.quantize.report import QuantizeReport
from tests.support.core_logits import all_logits
from tests.support.golden import read_reference
from tests.support.quantization import quantize_to, read_raw, write_calibration

METHODS = {"mxfp4": ("rtn", "mse", "gptq"), "nvfp4": ("rtn", "four-over-six", "mse", "gptq")}


@pytest.fixture(scope="module")
def made(golden, tmp_path_factory) -> dict[tuple[str, str], tuple[Path, QuantizeReport]]:
    folder = tmp_path_factory.mktemp("methods")
    calibration = write_calibration(golden, folder / "samples.jsonl")
    results = {}
    for format, methods in METHODS.items():
        for method in methods:
            path = folder / f"{format}-{method}"
            report = quantize_to(
                path, golden / "base-mixtral", format, "compressed-tensors", method, calibration
            )
            results[format, method] = (path, report)
    return results


def output_error(report: QuantizeReport) -> float:
    return float(np.mean([stage.output_error for stage in report.stages]))


@pytest.mark.parametrize("format", METHODS)
def test_each_method_has_less_error_than_the_one_before(made, format):
    errors = [output_error(made[format, method][1]) for method in METHODS[format]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_compensation_brings_the_logits_closer(golden, made):
    """NVFP4: MXFP4's errors drive these random, chaotic models too far for logits to be compared."""
    format = "nvfp4"
    reference = read_reference(golden / "mixtral-nvfp4-modelopt")
    ids = reference["input_ids"].reshape(-1).tolist()
    expected = all_logits(golden / "base-mixtral", ids, activations="bf16", numerics="reference", chunk=16)
    distance = {}
    for method in METHODS[format]:
        logits = all_logits(made[format, method][0], ids, activations="bf16", numerics="reference", chunk=16)
        distance[method] = float(np.square(logits - expected).mean())
    assert distance["gptq"] < 0.7 * distance["rtn"]


@pytest.mark.parametrize("format", METHODS)
def test_the_file_format_does_not_change(made, format):
    plain = {name: (dtype, a.shape) for name, (dtype, a) in read_raw(made[format, "rtn"][0]).items()}
    for method in METHODS[format]:
        path, report = made[format, method]
        raw = read_raw(path)
        assert {name: (dtype, array.shape) for name, (dtype, array) in raw.items()} == plain
        assert (path / "config.json").read_bytes() == (made[format, "rtn"][0] / "config.json").read_bytes()
        Checkpoint.open(path)
        assert report.output_bytes == made[format, "rtn"][1].output_bytes


def test_experts_that_no_token_chose_are_quantised_all_the_same(golden, tmp_path):
    """One token visits two of four experts; the others have no statistics and no Hessian."""
    samples = tmp_path / "one.jsonl"
    samples.write_text('{"input_ids": [5]}')
    report = quantize_to(
        tmp_path / "out", golden / "base-mixtral", "nvfp4", "modelopt", "gptq", calibration=samples
    )
    unseen = [module for module in report.modules if module.output_error is None]
    assert len(unseen) == 2 * 2 * 3  # layers, experts, projections
    raw = read_raw(tmp_path / "out")
    for layer in range(2):
        for part in ("w1", "w2", "w3"):
            scales = {
                float(raw[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{part}.input_scale"][1])
                for e in range(4)
            }
            assert len(scales) == 1
    Checkpoint.open(tmp_path / "out")
