"""Sources of every kind: dtypes, shards, biases, tied embeddings; the result decodes to what was stored."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from tests.support.core_logits import all_logits
from tests.support.quantization import all_bytes, quantize_to
from tests.support.random_checkpoint import RandomCheckpoint

SOURCES = {
    "llama with biases, tied": RandomCheckpoint(
        layout="plain", architecture="LlamaForCausalLM", attention_bias=True, tie_word_embeddings=True
    ),
    "float16 in three shards": RandomCheckpoint(layout="plain", dtype=np.float16, num_shards=3),
    "float32": RandomCheckpoint(layout="plain", dtype=np.float32),
    "mixtral": RandomCheckpoint(
        layout="plain", architecture="MixtralForCausalLM", num_experts=4, num_shards=2
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("format", "layout", "bound"),
    [
        ("mxfp4", "compressed-tensors", 0.02),
        ("nvfp4", "compressed-tensors", 0.012),
        ("nvfp4", "modelopt", 0.012),
    ],
)
def test_the_result_is_a_checkpoint_near_its_source(tmp_path, kind, format, layout, bound):
    source = SOURCES[kind].write(tmp_path / "source")
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"input_ids": [3, 4, 5, 6, 7, 8, 9, 10]}\n{"input_ids": [70]}\n')
    calibration = samples if format == "nvfp4" else None
    report = quantize_to(tmp_path / "out", source, format, layout, calibration=calibration)
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    assert len(before.modules()) == len(after.modules())
    num_quantized = 0
    for old, new in zip(before.modules(), after.modules(), strict=True):
        assert isinstance(old, DenseTensors)
        if old.bias is not None:
            np.testing.assert_array_equal(old.bias, new.bias)
        if isinstance(new, Fp4Tensors):
            num_quantized += 1
            weight = old.as_float32()
            error = np.square(weight - new.decoded(False)).sum() / np.square(weight).sum()
            assert 0 < error < bound
            assert report.modules[num_quantized - 1].weight_error == pytest.approx(error, rel=1e-3)
        else:
            np.testing.assert_array_equal(old.data, new.data)
    assert num_quantized == len(report.modules)
    logits = all_logits(tmp_path / "out", [3, 4, 5, 6], activations="checkpoint", numerics="fast", chunk=4)
    assert np.isfinite(logits).all()


def test_the_number_of_threads_changes_nothing(tmp_path):
    from engines.quantize.options import QuantizeOptions
    from engines.quantize.quantizer import quantize

    source = RandomCheckpoint(layout="plain", dtype=ml_dtypes.bfloat16).write(tmp_path / "source")
    for threads in (1, 3):
        quantize(
            QuantizeOptions(
                source, tmp_path / str(threads), "mxfp4", "compressed-tensors", num_threads=threads
            )
        )
    assert all_bytes(tmp_path / "1") == all_bytes(tmp_path / "3")
