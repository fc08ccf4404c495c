"""The checkpoint's own sampling defaults, and what a request says instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineInfo
from engines.request import SamplingParams
from service.generation_config import GenerationConfigError, SamplingDefaults, read_sampling_defaults
from service.protocol.completions import CompletionRequest
from service.sampling import sampling_params

INFO = EngineInfo("echo", 320, 512, frozenset({2}), 16, 0, 8)
FILE = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "do_sample": False,
    "max_new_tokens": 5,
    "eos_token_id": [2],
}


def params(defaults: SamplingDefaults, **fields: Any) -> SamplingParams:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields})
    return sampling_params(request, INFO, max_tokens=9, choice=0, num_logprobs=None, defaults=defaults)


@pytest.fixture
def defaults(tmp_path: Path) -> SamplingDefaults:
    (tmp_path / "generation_config.json").write_text(json.dumps(FILE))
    return read_sampling_defaults(tmp_path)


def test_the_file_holds_where_the_request_says_nothing(defaults: SamplingDefaults) -> None:
    assert params(defaults) == SamplingParams(
        max_tokens=9, temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    assert defaults.differing == {name: FILE[name] for name in ("temperature", "top_k", "top_p", "min_p")} | {
        "repetition_penalty": 1.1
    }


def test_the_request_comes_first(defaults: SamplingDefaults) -> None:
    said = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert params(defaults, **said) == SamplingParams(max_tokens=9)
    assert params(defaults, temperature=0).temperature == 0.0
    assert params(defaults, top_p=0).temperature == 0.0


def test_without_a_file_the_defaults_are_openais(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    assert params(SamplingDefaults()) == SamplingParams(max_tokens=9)
    assert SamplingDefaults().differing == {}


def test_a_file_may_ask_for_the_likeliest_token(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0, "top_k": -1, "top_p": null}')
    asked = params(read_sampling_defaults(tmp_path))
    assert (asked.temperature, asked.top_k, asked.top_p) == (0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds list"),
        ("{", "generation_config.json: "),
        ('{"temperature": -1}', "temperature: .*greater than or equal to 0"),
        ('{"top_p": "many"}', "top_p: "),
        ('{"repetition_penalty": 0}', "repetition_penalty: "),
        ('"' + "x" * 2**20, "larger than"),
    ],
)
def test_a_file_that_makes_no_sense_is_named_with_the_way_round(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(GenerationConfigError, match=f"{message}.*--generation-config none"):
        read_sampling_defaults(tmp_path)
