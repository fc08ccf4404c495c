"""With a screen of the head greedy sequences get the tokens of all logits, and others all logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineOptions
from engines.cpu.core import EngineCore
from engines.cpu.models.decoder import Decoder
from engines.cpu.startup import load_core
from engines.cpu.weights import HeadScreen
from engines.request import GenerationRequest, SamplingParams, TokenOutput
from tests.support.random_checkpoint import RandomCheckpoint

pytestmark = pytest.mark.skipif(not HeadScreen.fits(64), reason="these kernels have no screen of the head")

GREEDY = {"temperature": 0.0}


class PassCounter:
    """How many passes computed logits, and how many only the likeliest tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_full = self.num_screened = 0
        full, screened = Decoder.step, Decoder.likeliest

        def step(decoder: Decoder, *arguments: Any) -> Any:
            self.num_full += 1
            return full(decoder, *arguments)

        def likeliest(decoder: Decoder, *arguments: Any) -> Any:
            self.num_screened += 1
            return screened(decoder, *arguments)

        monkeypatch.setattr(Decoder, "step", step)
        monkeypatch.setattr(Decoder, "likeliest", likeliest)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RandomCheckpoint().write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> PassCounter:
    return PassCounter(monkeypatch)


def loaded(checkpoint: Path, **options: Any) -> EngineCore:
    return load_core(EngineOptions(checkpoint, kv_cache_memory_bytes=1 << 20, **options))


def generated(core: EngineCore, *sampling: dict[str, Any]) -> list[list[int]]:
    """The tokens of requests that run together, one for each parameters."""
    tokens: dict[str, list[int]] = {}
    for index, parameters in enumerate(sampling):
        prompt = tuple(range(5 + index, 25 + 3 * index))
        tokens[str(index)] = []
        params = SamplingParams(**{"max_tokens": 16, "ignore_eos": True, "seed": 7, **parameters})
        core.add(GenerationRequest(str(index), prompt, params))
    while core.has_work:
        for request_id, output in core.step():
            assert isinstance(output, TokenOutput)
            tokens[request_id].extend(output.token_ids)
    return list(tokens.values())


def test_greedy_sequences_need_no_logits(checkpoint: Path, counter: PassCounter) -> None:
    found = generated(loaded(checkpoint), GREEDY, GREEDY, GREEDY)
    assert (counter.num_full, counter.num_screened > 0) == (0, True)
    num_screened = counter.num_screened
    assert generated(loaded(checkpoint, head_screen=False), GREEDY, GREEDY, GREEDY) == found
    assert (counter.num_full > 0, counter.num_screened) == (True, num_screened)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.8},
        {"temperature": 0.0, "num_logprobs": 2},
        {"temperature": 0.0, "num_prompt_logprobs": 1},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.0, "logit_bias": {3: 50.0}},
        {"temperature": 0.0, "min_tokens": 4, "stop_token_ids": frozenset(range(0, 70, 2)), "max_tokens": 9},
    ],
)
def test_a_sequence_that_needs_logits_gets_them(
    checkpoint: Path, counter: PassCounter, other: dict[str, Any]
) -> None:
    found = generated(loaded(checkpoint), GREEDY, other)
    assert counter.num_full > 0
    assert generated(loaded(checkpoint, head_screen=False), GREEDY, other) == found


def test_guessed_tokens_are_held_against_the_screen(checkpoint: Path, counter: PassCounter) -> None:
    """Prompts that repeat themselves make the engine guess; the tokens stay those without a screen."""
    found = [generated(loaded(checkpoint, speculation=mode), GREEDY) for mode in ("auto", "off")]
    assert counter.num_full == 0
    assert found[0] == found[1]


def test_reference_numerics_have_no_screen(checkpoint: Path, counter: PassCounter) -> None:
    generated(loaded(checkpoint, numerics="reference"), GREEDY)
    assert counter.num_screened == 0
