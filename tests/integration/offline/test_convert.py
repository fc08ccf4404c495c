"""`nybble convert` on the golden checkpoints and on random ones of every shape."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.convert import conversion
from engines.convert.conversion import ConversionReport, convert
from engines.convert.errors import DestinationError, NoInputScales, NotLossless
from engines.convert.input_scales import observe_input_maxima, stored_input_scale
from engines.convert.options import ConvertOptions, Target
from engines.errors import InvalidRequest, UnsupportedCheckpoint
from engines.quantize.options import CalibrationOptions
from tests.support.checkpoint_edits import copy_checkpoint, edit_json, edit_tensors
from tests.support.core_logits import all_logits
from tests.support.golden import read_reference
from tests.support.plain_forward import PlainModel, read_tensors
from tests.support.random_checkpoint import RandomCheckpoint

MODELOPT, CT = Target.NVFP4_MODELOPT, Target.NVFP4_COMPRESSED_TENSORS


def run_convert(
    source: Path, destination: Path, target: Target, calibration: Path | None = None, **options: bool
) -> ConversionReport:
    chosen = None if calibration is None else CalibrationOptions(calibration)
    return convert(ConvertOptions(source, destination, target, chosen, **options))


def bits(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float32).view(np.uint32)


def decoded(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A weight by its own library's float32 formula, from raw tensors, without this project's reader."""
    if f"{name}.weight_scale_2" in tensors:
        scale = tensors[f"{name}.weight_scale"].astype(np.float32) * tensors[f"{name}.weight_scale_2"]
        return PlainModel._decode(tensors[f"{name}.weight"], scale)
    if f"{name}.weight_global_scale" in tensors:
        scale = tensors[f"{name}.weight_scale"].astype(np.float32) / tensors[f"{name}.weight_global_scale"]
        return PlainModel._decode(tensors[f"{name}.weight_packed"], scale)
    scale = np.ldexp(np.float32(1), tensors[f"{name}.weight_scale"].astype(int) - 127)
    return PlainModel._decode(tensors[f"{name}.weight_packed"], scale)


def fp4_names(tensors: dict[str, np.ndarray]) -> list[str]:
    return [key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale")]


@pytest.mark.parametrize("target", [MODELOPT, CT])
def test_golden_mxfp4_decodes_bit_equal(
    golden: Path, tmp_path: Path, samples_file: Path, target: Target
) -> None:
    source = golden / "mistral-mxfp4-ct"
    report = run_convert(source, tmp_path / "out", target, samples_file)
    before, after = read_tensors(source), read_tensors(tmp_path / "out")
    names = fp4_names(before)
    assert len(names) == report.num_equal_in_float32 == 14
    for name in names:
        assert np.array_equal(bits(decoded(before, name)), bits(decoded(after, name)))
        packed = after[f"{name}.weight" if target is MODELOPT else f"{name}.weight_packed"]
        assert np.array_equal(packed, before[f"{name}.weight_packed"])
    for name in ("q_proj", "k_proj"):
        key = "weight_scale_2" if target is MODELOPT else "weight_global_scale"
        scale = after[f"model.layers.0.self_attn.{name}.{key}"]
        assert scale == after[f"model.layers.0.self_attn.v_proj.{key}"]
        assert np.frexp(scale)[0] == 0.5  # a power of two


@pytest.mark.parametrize("target", [MODELOPT, CT])
def test_the_transcoded_model_computes_the_same(
    golden: Path, tmp_path: Path, samples_file: Path, target: Target
) -> None:
    source = golden / "mistral-mxfp4-ct"
    run_convert(source, tmp_path / "out", target, samples_file)
    ids = read_reference(source)["input_ids"][0].tolist()
    before, after = (
        all_logits(directory, ids, activations="bf16", numerics="reference", chunk=48)
        for directory in (source, tmp_path / "out")
    )
    assert np.array_equal(before, after)
    w4a4 = all_logits(tmp_path / "out", ids, activations="checkpoint", numerics="reference", chunk=48)
    assert np.abs(w4a4 - after).max() > 0.5  # activations are quantised with the calibrated scales
    plain = PlainModel(tmp_path / "out").logits(ids)
    assert (np.abs(w4a4 - plain).max(axis=-1) < 2e-3).mean() > 0.9


def test_modelopt_files_are_those_of_the_golden_export(
    golden: Path, tmp_path: Path, samples_file: Path
) -> None:
    """Names, dtypes, shapes and JSON as modelopt writes them, for a Mixtral in llm-compressor's spelling."""
    source = golden / "mixtral-nvfp4-modelopt"
    there = run_convert(source, tmp_path / "ct", CT, lossy=True)
    assert there.num_equal_in_bfloat16 == 31
    run_convert(tmp_path / "ct", tmp_path / "back", MODELOPT)
    before, after = read_tensors(source), read_tensors(tmp_path / "back")
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {
        name: (t.dtype, t.shape) for name, t in after.items()
    }
    for name in ("config.json", "hf_quant_config.json"):
        original, written = (json.loads((d / name).read_text()) for d in (source, tmp_path / "back"))
        assert original == written
    spelled = read_tensors(tmp_path / "ct")
    assert "model.layers.1.block_sparse_moe.experts.3.gate_proj.weight_packed" in spelled
    assert spelled["model.layers.1.block_sparse_moe.experts.3.gate_proj.weight_global_scale"].shape == (1,)
    assert not any(".w1." in name for name in spelled)


def test_ct_to_modelopt_and_back_restores_every_byte(golden: Path, tmp_path: Path) -> None:
    source = golden / "mistral-nvfp4-ct"
    there = run_convert(source, tmp_path / "modelopt", MODELOPT)
    back = run_convert(tmp_path / "modelopt", tmp_path / "ct", CT)
    before, after = read_tensors(source), read_tensors(tmp_path / "ct")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    original, written = (json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "ct"))
    original.pop("transformers_version")
    written.pop("transformers_version")
    assert original == written
    # bit-equal once rounded to bfloat16, as compressed-tensors decodes; in float32 only some are
    assert there.num_equal_in_bfloat16 == back.num_equal_in_bfloat16 == 14
    assert there.num_equal_in_float32 == 4
    middle = read_tensors(tmp_path / "modelopt")
    for name in fp4_names(before):
        one, other = (decoded(t, name).astype(ml_dtypes.bfloat16) for t in (before, middle))
        assert one.tobytes() == other.tobytes()
        assert middle[f"{name}.weight_scale_2"].shape == middle[f"{name}.input_scale"].shape == ()


def test_a_global_scale_that_would_change_weights_is_refused_by_name(golden: Path, tmp_path: Path) -> None:
    """This multiplier has so few bits that some weights lie on a midpoint of bfloat16."""
    with pytest.raises(NotLossless, match=r"model\.layers\.1\.self_attn\.o_proj.*bfloat16.*--lossy"):
        run_convert(golden / "mixtral-nvfp4-modelopt", tmp_path / "out", CT)
    assert not list(tmp_path.iterdir())


def test_input_scales_are_carried_over(tmp_path: Path) -> None:
    source = RandomCheckpoint(layout="nvfp4").write(tmp_path / "source")
    run_convert(source, tmp_path / "out", MODELOPT)
    before, after = read_tensors(source), read_tensors(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj"
    divisor = before[f"{name}.input_global_scale"][0]
    assert after[f"{name}.input_scale"] == np.float32(1) / divisor


def test_a_weight_only_source_has_no_input_scales_to_carry_over(tmp_path: Path) -> None:
    source = RandomCheckpoint(layout="nvfp4", quantize_activations=False).write(tmp_path / "source")
    with pytest.raises(NoInputScales, match=r"q_proj.*--calibration"):
        run_convert(source, tmp_path / "out", MODELOPT)


VARIANTS = {
    "mixtral, hub names, shards": RandomCheckpoint(
        architecture="MixtralForCausalLM", num_experts=4, num_shards=3
    ),
    "mixtral, llm-compressor names": RandomCheckpoint(
        architecture="MixtralForCausalLM", num_experts=2, hub_expert_names=False
    ),
    "llama, tied, biased": RandomCheckpoint(
        architecture="LlamaForCausalLM", tie_word_embeddings=True, attention_bias=True
    ),
    "one dense projection": RandomCheckpoint(dense=("lm_head", "model.layers.1.self_attn.k_proj")),
    "quantised head": RandomCheckpoint(dense=()),
}


@pytest.mark.parametrize("target", [MODELOPT, CT])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_module_keeps_its_numbers(tmp_path: Path, name: str, target: Target) -> None:
    source = VARIANTS[name].write(tmp_path / "source")
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"input_ids": list(range(40))}) + "\n")
    run_convert(source, tmp_path / "out", target, samples)
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    assert len(before.modules()) == len(after.modules())
    for one, other in zip(before.modules(), after.modules(), strict=True):
        if isinstance(one, DenseTensors):
            assert isinstance(other, DenseTensors)
            assert (one.dtype, one.data.tobytes()) == (other.dtype, other.data.tobytes())
        else:
            assert isinstance(other, Fp4Tensors)
            assert np.array_equal(bits(one.decoded(False)), bits(other.decoded(False)))
            assert other.input_scale is not None
        assert (one.bias is None) == (other.bias is None)
        assert one.bias is None or np.array_equal(one.bias, other.bias)


@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.up_proj"])
def test_layers_that_servers_fuse_share_their_global_scale(tmp_path: Path, part: str) -> None:
    source = RandomCheckpoint().write(tmp_path / "source")
    lowered = f"model.layers.0.{part}.weight_scale"
    edit_tensors(source, lambda tensors: np.subtract(tensors[lowered][1], 5, out=tensors[lowered][1]))
    run_convert(source, tmp_path / "out", CT, weight_only=True)
    tensors = read_tensors(tmp_path / "out")
    for fused in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ):
        names = [f"model.layers.0.{name}.weight_global_scale" for name in fused]
        assert len({float(tensors[name][0]) for name in names}) == 1
    assert tensors[lowered].astype(np.float32).max() < 16  # while gate's, and q's, reach 256


def test_a_tied_head_is_named_as_unquantised(tmp_path: Path) -> None:
    """It is no tensor of the files, but a Linear to the libraries that load them."""
    source = RandomCheckpoint(architecture="LlamaForCausalLM", tie_word_embeddings=True).write(tmp_path / "a")
    run_convert(source, tmp_path / "out", CT, weight_only=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_weight_only_keeps_activations_unquantised(golden: Path, tmp_path: Path) -> None:
    run_convert(golden / "mistral-mxfp4-ct", tmp_path / "out", CT, weight_only=True)
    checkpoint = Checkpoint.open(tmp_path / "out")
    fp4 = [module for module in checkpoint.modules() if isinstance(module, Fp4Tensors)]
    assert not any(module.quantizes_activations for module in fp4)
    with pytest.raises(InvalidRequest, match="nvfp4-compressed-tensors"):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "other", MODELOPT, weight_only=True)


def test_lossy_reports_what_it_changed(golden: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path / "source")
    victim = "model.layers.1.mlp.up_proj"

    def lower_one_block(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
        tensors[f"{victim}.weight_scale"][1][5, 1] = 90

    edit_tensors(source, lower_one_block)
    with pytest.raises(NotLossless, match=re.escape(victim) + ".*span of 36 binades"):
        run_convert(source, tmp_path / "out", CT, weight_only=True)
    report = run_convert(source, tmp_path / "out", CT, weight_only=True, lossy=True)
    assert report.num_equal_in_float32 == 13
    assert report.worst is not None
    assert report.worst.name == victim
    assert 0 < report.worst.difference.max_error <= 6 * 2.0 ** (90 - 127)
    before, after = (decoded(read_tensors(d), victim) for d in (source, tmp_path / "out"))
    changed = np.argwhere(before != after)
    assert set(changed[:, 0]) == {5}
    assert set(changed[:, 1]) <= set(range(32, 64))


def test_calibration_observes_what_each_layer_reads(golden: Path, calibration_ids: list[list[int]]) -> None:
    """The embedding's norm is the same in every export, so the first maximum is that of the library."""
    for name, expected in (("mistral-nvfp4-ct", 2688 / 222), ("mixtral-nvfp4-modelopt", 12.125)):
        maxima = observe_input_maxima(Checkpoint.open(golden / name), calibration_ids)
        q, k = (maxima[f"model.layers.0.self_attn.{part}_proj"] for part in "qk")
        assert q == k == pytest.approx(expected, rel=2**-8)
        first = Checkpoint.open(golden / name).linear("model.layers.0.self_attn.q_proj")
        assert isinstance(first, Fp4Tensors)
        target = MODELOPT if "modelopt" in name else CT
        assert stored_input_scale(q, target, bfloat16_model=True) == first.input_scale
        if "mixtral" in name:
            down = {maxima[f"model.layers.1.block_sparse_moe.experts.{e}.w2"] for e in range(4)}
            assert len(down) == 1
        # the later ones were calibrated over BF16 weights, and these random models are chaotic
        stored = Checkpoint.open(golden / name).linear("model.layers.1.self_attn.o_proj")
        assert isinstance(stored, Fp4Tensors)
        assert stored.input_scale is not None
        amax = 2688 * (stored.input_scale if "mixtral" in name else 1 / stored.input_scale)
        assert maxima[stored.name] == pytest.approx(amax, rel=0.25)


def test_an_expert_without_tokens_has_an_input_scale(tmp_path: Path) -> None:
    source = RandomCheckpoint(architecture="MixtralForCausalLM", num_experts=8).write(tmp_path / "source")
    maxima = observe_input_maxima(Checkpoint.open(source), [[5]])  # one token reaches two of eight
    assert len({maxima[f"model.layers.0.block_sparse_moe.experts.{e}.w1"] for e in range(8)}) == 1


def test_mxfp4_without_calibration_is_refused(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(NoInputScales, match=r"q_proj: MXFP4 .*--calibration FILE\.jsonl"):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "out", MODELOPT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        ("base-mistral", MODELOPT, "nybble quantize"),
        ("mixtral-nvfp4-modelopt", MODELOPT, "nvfp4-modelopt already"),
        ("mistral-nvfp4-ct", CT, "nvfp4-compressed-tensors already"),
    ],
)
def test_sources_with_nothing_to_convert(
    golden: Path, tmp_path: Path, source: str, target: Target, match: str
) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=match):
        run_convert(golden / source, tmp_path / "out", target)


def test_a_quantised_kv_cache_is_not_dropped_in_silence(golden: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(golden / "mixtral-nvfp4-modelopt", tmp_path / "source")
    edit_json(source / "hf_quant_config.json", lambda c: c["quantization"].update(kv_cache_quant_algo="FP8"))
    scheme = {"dynamic": False, "num_bits": 8, "type": "float"}
    edit_json(source / "config.json", lambda c: c["quantization_config"].update(kv_cache_scheme=scheme))
    name = "model.layers.0.self_attn.k_proj.k_scale"
    edit_tensors(source, lambda tensors: tensors.update({name: ("F32", np.ones(1, np.float32))}))
    with pytest.raises(NotLossless, match="KV cache in FP8"):
        run_convert(source, tmp_path / "out", CT)
    report = run_convert(source, tmp_path / "out", CT, lossy=True)
    assert report.left_out == (name,)


def test_an_existing_destination_is_left_alone(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "out", CT, weight_only=True)
    with pytest.raises(DestinationError, match="no directory"):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "no" / "out", CT, weight_only=True)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failing_disk_leaves_nothing(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(conversion, "_write_configuration", fail)  # after the weights
    with pytest.raises(DestinationError, match=os.strerror(code)):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "out", CT, weight_only=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_foreseen(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.convert.destination._ROOM_FOR_FILES_BYTES", 1 << 62)
    with pytest.raises(DestinationError, match="free"):
        run_convert(golden / "mistral-mxfp4-ct", tmp_path / "out", CT, weight_only=True)


def test_a_source_that_changes_meanwhile(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path / "source")
    carry = conversion.carry_files

    def touch_and_carry(one: Path, other: Path) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))
        carry(one, other)

    monkeypatch.setattr(conversion, "carry_files", touch_and_carry)
    with pytest.raises(conversion.ConversionError, match="changed while they were read"):
        run_convert(source, tmp_path / "out", CT, weight_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command(golden: Path, tmp_path: Path, samples_file: Path, run: Callable[..., object]) -> None:
    source = golden / "mistral-mxfp4-ct"
    result = run(
        "convert", source, tmp_path / "out", "--to", "nvfp4-modelopt",
        "--calibration", samples_file, "--samples", 4, "--max-length", 20, "--json",
    )  # fmt: skip
    assert result.status == 0
    report = json.loads(result.out)
    assert (report["num_fp4_modules"], report["num_equal_in_float32"], report["changed"]) == (14, 14, [])
    assert (report["calibrated"], report["max_span"]) == (True, 4)
    carried = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= carried
    assert "recipe.yaml" not in carried
    again = run("convert", source, tmp_path / "out", "--to", "nvfp4-modelopt")
    assert (again.status, "exists already" in again.err) == (1, True)
    table = run("convert", source, tmp_path / "ct", "--to", "nvfp4-compressed-tensors", "--weight-only")
    assert (table.status, "14 of 14" in table.out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "nvfp5"), "expected one of: nvfp4-modelopt, nvfp4-compressed-tensors"),
        (("--to", "nvfp4-modelopt", "--samples", "3"), "belong to --calibration"),
        (("--to", "nvfp4-modelopt", "--weight-only"), "cannot say that activations stay unquantised"),
        (("--to", "nvfp4-modelopt", "--calibration", "/none.jsonl"), "/none.jsonl: cannot be read"),
        (("--to", "nvfp4-modelopt", "--calibration", "/none.jsonl", "--samples", "0"), "at least 1"),
    ],
)
def test_mistakes(
    golden: Path, tmp_path: Path, run: Callable[..., object], arguments: tuple[str, ...], text: str
) -> None:
    result = run("convert", golden / "mistral-mxfp4-ct", tmp_path / "out", *arguments)
    assert result.status == 1
    assert text in result.err
    assert not list(tmp_path.iterdir())
