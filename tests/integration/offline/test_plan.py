"""`nybble plan` as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.capacity import cpu_device
from tests.support.command_line import Result

MIXTRAL = "mixtral-nvfp4-modelopt"


def test_all_devices_are_planned_for(run: Callable[..., Result], golden: Path) -> None:
    result = run("plan", golden / MIXTRAL, "--json")
    assert result.status == 0
    devices = json.loads(result.out)["devices"]
    assert [one["device"]["name"] for one in devices] == ["gb10", "rtx6000-blackwell", "b200", "gb200", "cpu"]
    assert all(one["contexts"] == [512] for one in devices)  # the model's
    assert all(ceiling["tokens_per_second"] > 0 for one in devices for ceiling in one["decode"])


def test_the_tables_name_device_and_ceiling(run: Callable[..., Result], golden: Path) -> None:
    result = run("plan", golden / MIXTRAL, "--target", "gb200", "--tensor-parallel", 2, "--context", 128)
    text = " ".join(result.out.split())
    assert "2 x GB200" in text
    assert "docs/capacity.md" in text


@pytest.fixture
def small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_device, "_READ_BYTES", 1 << 22)
    monkeypatch.setattr(cpu_device, "_GEMM_ROWS", 64)


@pytest.mark.usefixtures("small_measurement")
@pytest.mark.parametrize("arguments", [("--target", "cpu"), ("--measure",)])
def test_the_cpu_is_measured_when_it_is_named_or_asked_for(
    run: Callable[..., Result], golden: Path, arguments: tuple[str, ...]
) -> None:
    document = json.loads(run("plan", golden / MIXTRAL, *arguments, "--json").out)
    measured = document["cpu_measurement"]
    device = document["devices"][-1]["device"]
    assert device["name"] == "cpu"
    assert device["bandwidth"] == measured["read_bandwidth"] > 1e8
    assert device["fp4_flops"] == measured["fp4_flops"] > 1e7
    assert device["bf16_flops"] == measured["bf16_flops"] > 1e7
    assert measured["assumed_read_bandwidth"] > 0


@pytest.mark.parametrize("arguments", [(), ("--target", "cpu", "--no-measure")])
def test_else_it_is_assumed(
    run: Callable[..., Result], golden: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.cli_plan.measure_cpu", lambda: pytest.fail("measured"))
    assert "cpu_measurement" not in json.loads(run("plan", golden / MIXTRAL, *arguments, "--json").out)


@pytest.mark.usefixtures("small_measurement")
def test_the_tables_say_what_was_measured(run: Callable[..., Result], golden: Path) -> None:
    text = " ".join(run("plan", golden / MIXTRAL, "--target", "cpu").out.split())
    assert "measured: " in text
    assert "GB/s read (assumed" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "h100"), "target 'h100' is unknown"),
        (("--target", "gb10", "--measure"), "add --target cpu"),
        (("--context", "513"), "positions for 512 tokens"),
        (("--context", "0"), "--context is 0"),
        (("--tensor-parallel", "0"), "--tensor-parallel is 0"),
        (("--kv-cache-dtype", "int8"), "--kv-cache-dtype 'int8'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Callable[..., Result], golden: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("plan", golden / MIXTRAL, *arguments)
    assert (result.status, result.out) == (1, "")
    assert message in result.err
