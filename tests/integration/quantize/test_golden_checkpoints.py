"""Quantising the golden sources gives what the libraries that own the layouts made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.core_logits import all_logits
from tests.support.golden import read_reference
from tests.support.quantization import quantize_to, read_raw, write_calibration

CASES = {
    "mistral-mxfp4-ct": ("base-mistral", "mxfp4", "compressed-tensors"),
    "mistral-nvfp4-ct": ("base-mistral", "nvfp4", "compressed-tensors"),
    "mixtral-nvfp4-modelopt": ("base-mixtral", "nvfp4", "modelopt"),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, golden, tmp_path_factory) -> tuple[Path, Path]:
    """(what we made, what the library made)."""
    source, format, layout = CASES[request.param]
    folder = tmp_path_factory.mktemp("quantized")
    calibration = write_calibration(golden, folder / "samples.jsonl") if format == "nvfp4" else None
    made = folder / request.param
    quantize_to(made, golden / source, format, layout, calibration=calibration)
    return made, golden / request.param


def is_input_scale(name: str) -> bool:
    return name.endswith(("input_global_scale", "input_scale"))


def test_the_same_tensors_in_the_same_order(pair):
    made, expected = (read_raw(directory) for directory in pair)
    assert list(made) == list(expected)
    for name, (dtype, array) in expected.items():
        assert (made[name][0], made[name][1].shape) == (dtype, array.shape), name


def test_weights_scales_and_global_scales_are_bit_equal(pair):
    made, expected = (read_raw(directory) for directory in pair)
    for name, (_, array) in expected.items():
        if not is_input_scale(name):
            np.testing.assert_array_equal(made[name][1], array, err_msg=name)


def test_configuration_and_companions_are_the_same(pair):
    made, expected = pair
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (made / name).read_bytes() == (expected / name).read_bytes()
    documents = [json.loads((directory / "config.json").read_text()) for directory in pair]
    for document in documents:
        document.pop("transformers_version")  # of whoever saved it last
    assert documents[0] == documents[1]
    names = [{path.name for path in directory.iterdir()} for directory in pair]
    assert names[0] - {"quantization_report.json"} == names[1] - {"reference.safetensors", "recipe.yaml"}
    if "hf_quant_config.json" in names[1]:
        documents = [json.loads((d / "hf_quant_config.json").read_text()) for d in pair]
        assert documents[0] == documents[1]


def test_mxfp4_is_the_same_file_byte_for_byte(pair):
    made, expected = pair
    if expected.name == "mistral-mxfp4-ct":
        for name in ("model.safetensors", "config.json"):
            assert (made / name).read_bytes() == (expected / name).read_bytes()


def test_the_engine_serves_it_as_it_serves_theirs(pair):
    """Without activation quantisation, so that the input scales of another calibration do not matter."""
    made, expected = pair
    reference = read_reference(expected)
    ids = reference["input_ids"].reshape(-1).tolist()
    logits = all_logits(made, ids, activations="bf16", numerics="reference", chunk=16)
    np.testing.assert_allclose(logits, reference["logits_w4a16_f32"].reshape(logits.shape), atol=1e-3)
