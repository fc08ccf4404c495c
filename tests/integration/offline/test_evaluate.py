"""`nybble perplexity` and `nybble compare`, against an independent forward pass and against arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineError, InvalidRequest, MalformedCheckpoint
from engines.evaluate import logits as logits_module
from engines.evaluate.comparison import compare_models
from engines.evaluate.documents import Document
from engines.evaluate.logits import open_model
from engines.evaluate.perplexity import PerplexityResult, measure_perplexity, num_positions
from engines.evaluate.windows import Windowing
from tests.support.checkpoint_edits import copy_checkpoint, edit_tensors
from tests.support.plain_forward import PlainModel
from tests.support.random_checkpoint import RandomCheckpoint


def plain_nll(logits: np.ndarray, targets: list[int]) -> float:
    """Sum of -log softmax(logits)[target], in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -float(logprobs[np.arange(len(targets)), targets].sum())


def documents_of(samples: list[list[int]]) -> list[Document]:
    return [Document(f"line {index}", tuple(ids)) for index, ids in enumerate(samples, 1)]


def measure(
    directory: Path, samples: list[list[int]], windowing: Windowing, **options: str
) -> PerplexityResult:
    model = open_model(directory, windowing.window, **options)
    return measure_perplexity(model, documents_of(samples), windowing)


@pytest.mark.parametrize(
    ("name", "activations", "tolerance"),
    [
        ("base-mistral", "checkpoint", 1e-5),
        ("mistral-mxfp4-ct", "bf16", 1e-5),
        ("mistral-mxfp4-ct", "checkpoint", 2e-3),  # a rounding can flip an FP4 activation
    ],
)
def test_perplexity_equals_an_independent_computation(
    golden: Path, calibration_ids: list[list[int]], name: str, activations: str, tolerance: float
) -> None:
    samples = calibration_ids[:3]
    model = PlainModel(golden / name, quantize_activations=activations == "checkpoint")
    expected = sum(plain_nll(model.logits(ids)[:-1], ids[1:]) for ids in samples) / (3 * 63)
    result = measure(golden / name, samples, Windowing(64, 32), activations=activations, numerics="reference")
    assert result.mean_nll == pytest.approx(expected, rel=tolerance)
    assert result.perplexity == pytest.approx(math.exp(result.mean_nll))
    assert (result.num_scored_tokens, result.num_computed_tokens, result.num_documents) == (189, 192, 3)


def test_sliding_windows_equal_an_independent_computation(
    golden: Path, calibration_ids: list[list[int]]
) -> None:
    """As the usual recipe has it: each window's logits by itself, only what is new is scored."""
    ids, window, stride = calibration_ids[0] + calibration_ids[1][:9], 24, 7
    model = PlainModel(golden / "base-mistral")
    total, previous_end, begin = 0.0, 1, 0
    while True:
        end = min(begin + window, len(ids))
        new = end - previous_end
        logits = model.logits(ids[begin:end])
        total += plain_nll(logits[-new - 1 : -1], ids[end - new : end])
        previous_end = end
        if end == len(ids):
            break
        begin += stride
    result = measure(golden / "base-mistral", [ids], Windowing(window, stride), numerics="reference")
    assert result.num_scored_tokens == len(ids) - 1
    assert result.mean_nll == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_the_chunk_size_changes_nothing(
    golden: Path, calibration_ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    windowing, samples = Windowing(50, 20), [calibration_ids[0] + calibration_ids[1]]
    whole = measure(golden / "base-mistral", samples, windowing)
    monkeypatch.setattr(logits_module, "CHUNK_TOKENS", 7)
    chunked = measure(golden / "base-mistral", samples, windowing)
    assert chunked.mean_nll == pytest.approx(whole.mean_nll, rel=1e-12)
    assert chunked.num_scored_tokens == whole.num_scored_tokens


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_plain_checkpoints_of_other_dtypes(tmp_path: Path, dtype: type) -> None:
    directory = RandomCheckpoint(layout="plain", dtype=dtype).write(tmp_path / "plain")
    ids = list(range(3, 60))
    expected = plain_nll(PlainModel(directory).logits(ids)[:-1], ids[1:]) / 56
    assert measure(directory, [ids], Windowing(64, 32), numerics="reference").mean_nll == pytest.approx(
        expected, rel=1e-5
    )


def test_progress_adds_up(golden: Path, calibration_ids: list[list[int]]) -> None:
    documents, windowing = documents_of(calibration_ids[:2]), Windowing(40, 10)
    seen: list[int] = []
    model = open_model(golden / "base-mistral", 40)
    result = measure_perplexity(model, documents, windowing, seen.append)
    assert sum(seen) == num_positions(documents, windowing) == result.num_computed_tokens


def test_a_model_compared_with_itself(golden: Path, calibration_ids: list[list[int]]) -> None:
    one, other = (open_model(golden / "mistral-mxfp4-ct", 64) for _ in range(2))
    result = compare_models(one, other, documents_of(calibration_ids[:4]), Windowing(64, 32))
    assert (result.mean_kl, result.max_kl, result.agreement) == (0.0, 0.0, 1.0)
    assert (result.max_logit_difference, result.first_divergence) == (0.0, None)
    assert result.perplexity_ratio == 1.0
    assert result.a.mean_nll == result.b.mean_nll


def test_the_quantised_model_compared_with_its_source(golden: Path, calibration_ids: list[list[int]]) -> None:
    """Every figure again, from whole matrices of logits by the independent forward."""
    samples, directories = calibration_ids[:3], (golden / "base-mistral", golden / "mistral-mxfp4-ct")
    rows = [
        np.concatenate([PlainModel(d, quantize_activations=False).logits(ids)[:-1] for ids in samples])
        for d in directories
    ]
    log_a, log_b = (
        r.astype(np.float64) - np.log(np.exp(r.astype(np.float64)).sum(-1, keepdims=True)) for r in rows
    )
    kl = (np.exp(log_a) * (log_a - log_b)).sum(-1)
    best_a, best_b = (r.argmax(-1) for r in rows)
    a, b = (open_model(d, 64, activations="bf16", numerics="reference") for d in directories)
    result = compare_models(a, b, documents_of(samples), Windowing(64, 32))
    assert result.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert result.max_kl == pytest.approx(kl.max(), rel=1e-3)
    assert result.agreement == pytest.approx((best_a == best_b).mean(), abs=1e-12)
    assert result.max_logit_difference == pytest.approx(np.abs(rows[0] - rows[1]).max(), rel=1e-4)
    assert 0.2 < result.mean_kl < 0.5  # measured once: 0.29
    first = int(np.flatnonzero(best_a != best_b)[0])
    divergence = result.first_divergence
    assert divergence is not None
    assert (divergence.source, divergence.position) == (f"line {first // 63 + 1}", first % 63 + 1)
    assert divergence.token_id == samples[first // 63][first % 63 + 1]
    assert (divergence.token_id_a, divergence.token_id_b) == (best_a[first], best_b[first])


def test_the_reverse_divergence_is_another(golden: Path, calibration_ids: list[list[int]]) -> None:
    a, b = (open_model(golden / name, 64) for name in ("base-mistral", "mistral-mxfp4-ct"))
    documents, windowing = documents_of(calibration_ids[:2]), Windowing(64, 32)
    there, back = compare_models(a, b, documents, windowing), compare_models(b, a, documents, windowing)
    assert there.mean_kl != back.mean_kl
    assert there.perplexity_ratio == pytest.approx(1 / back.perplexity_ratio)


def test_errors(golden: Path, tmp_path: Path) -> None:
    model = open_model(golden / "base-mistral", 16)
    windowing = Windowing(16, 8)
    with pytest.raises(InvalidRequest, match="at least two tokens"):
        measure_perplexity(model, [Document("x", (5,))], windowing)
    with pytest.raises(InvalidRequest, match="x: token id 320 is outside"):
        measure_perplexity(model, [Document("x", (5, 320))], windowing)
    with pytest.raises(InvalidRequest, match="17 tokens; expected at most 16"):
        list(model.logits([1] * 17))
    with pytest.raises(InvalidRequest, match="expected 1 to 512"):
        open_model(golden / "base-mistral", 513)
    other = open_model(RandomCheckpoint().write(tmp_path / "other"), 16)
    with pytest.raises(InvalidRequest, match="vocabularies of 320 and 71"):
        compare_models(model, other, [Document("x", (5, 6))], windowing)
    weight_only = RandomCheckpoint(layout="nvfp4").write(tmp_path / "nvfp4")
    edit_tensors(
        weight_only,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "input_global_scale" in name],
    )
    with pytest.raises(MalformedCheckpoint, match="--activations bf16"):
        open_model(weight_only, 16)


def test_logits_that_are_not_finite(golden: Path, tmp_path: Path) -> None:
    directory = copy_checkpoint(golden / "base-mistral", tmp_path / "broken")

    def overflow(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
        tensors["lm_head.weight"][1][:] = 0x7F00  # the largest bfloat16 binade

    edit_tensors(directory, overflow)
    with pytest.raises(EngineError, match="NaN or infinite logits"):
        list(open_model(directory, 16).logits([1, 2, 3]))


def test_the_perplexity_command(golden: Path, samples_file: Path, run: Callable[..., object]) -> None:
    directory = golden / "mistral-mxfp4-ct"
    result = run("perplexity", directory, "--text", samples_file, "--json", "--window", 40, "--stride", 20)
    assert (result.status, result.err) == (0, "")
    answer = json.loads(result.out)
    assert (answer["window"], answer["stride"], answer["num_documents"]) == (40, 20, 16)
    assert answer["num_scored_tokens"] == 16 * 63
    assert answer["perplexity"] == pytest.approx(math.exp(answer["mean_nll"]))
    w4a16 = run("perplexity", directory, "--text", samples_file, "--json", "--activations", "bf16")
    assert json.loads(w4a16.out)["mean_nll"] != answer["mean_nll"]
    table = run("perplexity", directory, "--text", samples_file)
    assert "1,008 tokens of 16 documents" in table.out


def test_the_compare_command_and_its_gate(
    golden: Path, samples_file: Path, run: Callable[..., object]
) -> None:
    a, b = golden / "base-mistral", golden / "mistral-mxfp4-ct"
    arguments = ("compare", a, b, "--text", samples_file)
    passed = run(*arguments, "--activations-b", "bf16", "--json", "--max-kl", 1, "--min-agreement", 0.1)
    answer = json.loads(passed.out)
    assert (passed.status, answer["failures"]) == (0, [])
    assert 0 < answer["mean_kl"] < 1
    assert answer["b"]["activations"] == "bf16"
    assert isinstance(answer["first_divergence"]["token"]["text"], str)
    failed = run(*arguments, "--max-kl", 0.001, "--min-agreement", 0.999, "--max-perplexity-ratio", 0.5)
    assert failed.status == 3
    for name in ("--max-kl", "--min-agreement", "--max-perplexity-ratio"):
        assert name in failed.out
    itself = run("compare", b, b, "--text", samples_file, "--json", "--max-kl", 0, "--min-agreement", 1)
    assert (itself.status, json.loads(itself.out)["first_divergence"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--text", "/none.txt"), "/none.txt: cannot be read"),
        (("--window", "600"), "expected 2 to 512"),
        (("--stride", "0"), "stride is 0"),
        (("--activations", "fp2"), "expected one of: checkpoint, bf16"),
        (("--numerics", "exact"), "expected one of: fast, reference"),
        (("--num-threads", "-1"), "num_threads is -1"),
    ],
)
def test_mistakes(
    golden: Path, samples_file: Path, run: Callable[..., object], arguments: tuple[str, ...], text: str
) -> None:
    given = arguments if "--text" in arguments else ("--text", samples_file, *arguments)
    result = run("perplexity", golden / "base-mistral", *given)
    assert (result.status, result.out) == (1, "")
    assert text in result.err


def test_models_over_other_vocabularies(
    golden: Path, tmp_path: Path, samples_file: Path, run: Callable[..., object]
) -> None:
    other = RandomCheckpoint().write(tmp_path / "other")
    result = run("compare", golden / "base-mistral", other, "--text", samples_file)
    assert result.status == 1
    assert "only models over the same vocabulary" in result.err
