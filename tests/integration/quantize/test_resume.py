"""A run killed without mercy and repeated gives the bytes of an undisturbed one; nothing is there before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.quantize.errors import DestinationError, SourceChanged
from engines.quantize.options import QuantizeOptions
from engines.quantize.quantizer import quantize
from engines.quantize.run_directory import aside_path
from tests.support.checkpoint_edits import copy_checkpoint, edit_tensors
from tests.support.quantization import all_bytes, run_quantize, write_calibration
from tests.support.random_checkpoint import RandomCheckpoint

KILLED = -9


def fields_for(golden: Path, folder: Path, method: str, source: Path, name: str) -> dict[str, object]:
    calibration = folder / "samples.jsonl"
    if not calibration.exists():
        write_calibration(golden, calibration, num_samples=4)
    return {
        "source": source,
        "destination": folder / name,
        "format": "nvfp4",
        "layout": "modelopt",
        "method": method,
        "calibration": calibration,
        "shard_bytes": 60_000,
    }


@pytest.mark.parametrize(
    ("method", "source", "kills"),
    [
        ("rtn", "base-mistral", ["embedding: copying", "layer 1: calibrating", "head: copying"]),
        ("gptq", "base-mixtral", ["layer 0: quantising", "layer 1: quantising", "publishing"]),
    ],
)
def test_killed_again_and_again_it_ends_with_the_same_bytes(golden, tmp_path, method, source, kills):
    undisturbed = fields_for(golden, tmp_path, method, golden / source, "undisturbed")
    assert run_quantize(undisturbed).returncode == 0
    disturbed = fields_for(golden, tmp_path, method, golden / source, "disturbed")
    for activity in kills:
        killed = run_quantize(disturbed, kill_at=activity)
        assert killed.returncode == KILLED, killed.stderr
        assert not (tmp_path / "disturbed").exists()
    finished = run_quantize(disturbed)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["num_resumed_stages"] >= 2
    assert all_bytes(tmp_path / "disturbed") == all_bytes(tmp_path / "undisturbed")
    assert len(list((tmp_path / "disturbed").glob("model-*.safetensors"))) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disturbed", "samples.jsonl", "undisturbed"]


def test_a_source_changed_between_two_runs_is_refused(golden, tmp_path):
    source = copy_checkpoint(golden / "base-mistral", tmp_path / "source")
    fields = {
        "source": source,
        "destination": tmp_path / "out",
        "format": "mxfp4",
        "layout": "compressed-tensors",
    }
    assert run_quantize(fields, kill_at="layer 1: copying").returncode == KILLED

    def change(tensors):
        dtype, array = tensors["model.layers.1.mlp.down_proj.weight"]
        array.flat[0] ^= 1
        tensors["model.layers.1.mlp.down_proj.weight"] = (dtype, array)

    edit_tensors(source, change)
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        quantize(QuantizeOptions(**fields))
    assert not (tmp_path / "out").exists()


def test_a_source_changed_during_the_run_is_refused(golden, tmp_path):
    source = copy_checkpoint(golden / "base-mistral", tmp_path / "source")

    def replace_config(progress):
        if progress.activity == "head: copying":
            (source / "config.json").write_text((source / "config.json").read_text() + " ")

    with pytest.raises(SourceChanged, match=r"config\.json: has changed while it was being quantised"):
        quantize(QuantizeOptions(source, tmp_path / "out", "mxfp4", "compressed-tensors"), replace_config)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_nothing_at_the_destination_and_the_rest_can_follow(
    golden, tmp_path, monkeypatch
):
    """The second output file finds no room; with room again the run continues."""
    options = QuantizeOptions(
        golden / "base-mistral", tmp_path / "out", "mxfp4", "compressed-tensors", shard_bytes=1
    )
    import os

    real, calls = os.pwrite, []

    def filling(descriptor, data, position):
        calls.append(position)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(DestinationError, match=r"out: cannot be written: No space left on device"):
        quantize(options)
    assert not options.destination.exists()
    monkeypatch.setattr(os, "pwrite", real)
    report = quantize(options)
    assert report.num_resumed_stages >= 1
    assert options.destination.exists()
    assert not aside_path(options.destination).exists()


def test_too_little_space_is_found_before_the_work(golden, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    options = QuantizeOptions(golden / "base-mistral", tmp_path / "out", "mxfp4", "compressed-tensors")
    with pytest.raises(DestinationError, match="1,000 are free"):
        quantize(options)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """Twelve layers against three: 57 MB more of weights, less than a layer's 6 MB more of memory."""
    peaks = {}
    for num_layers in (3, 12):
        model = RandomCheckpoint(
            layout="plain",
            hidden_size=512,
            intermediate_size=1536,
            num_layers=num_layers,
            num_heads=4,
            num_kv_heads=4,
            head_dim=128,
        )
        source = model.write(tmp_path / f"source-{num_layers}")
        model.tensors.clear()
        fields = {
            "source": source,
            "destination": tmp_path / f"out-{num_layers}",
            "format": "mxfp4",
            "layout": "compressed-tensors",
            "checked_bytes": 4096,  # these tensors stand for ones too large to be read at opening
        }
        finished = run_quantize(fields)
        assert finished.returncode == 0, finished.stderr
        peaks[num_layers] = json.loads(finished.stdout)["peak_bytes"]
    assert peaks[12] - peaks[3] < 10_000_000, peaks
