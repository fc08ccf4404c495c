"""Drafts change how many steps a text takes, and not one token, draw or log-probability of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.base import EngineOptions
from engines.cpu.core import EngineCore
from engines.cpu.speculation.speculator import Speculator
from engines.cpu.startup import load_core
from engines.request import GenerationRequest, SamplingParams, TokenOutput
from engines.scheduler import Batch, Sequence

MAX_TOKENS = 48


class Guesser(Speculator):
    """Guesses in every step, from the answer given without drafts: mostly right, now and then wrong."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        super().__init__()
        self._answers = answers
        self._rng = random.Random(0)

    def draft(self, sequence: Sequence, limit: int) -> list[int]:
        start = sequence.num_generated_tokens
        guesses = self._answers[sequence.request_id][start : start + self._rng.randint(0, min(5, limit))]
        if guesses and self._rng.random() < 0.3:
            guesses[-1] = (guesses[-1] + 1) % 512
        return guesses

    def end_step(self, batch: Batch, sampled: Mapping[str, tuple[int, ...]], seconds: float) -> None:
        self.num_drafts_total += sum(len(chunk.draft_token_ids) for chunk in batch)
        self.num_confirmed_total += sum(len(token_ids) - 1 for token_ids in sampled.values())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speculation")
    kinds = {"tiny": ("mxfp4", "compressed-tensors"), "tiny-moe": ("nvfp4", "modelopt")}
    for name, (format, layout) in kinds.items():
        make_random_checkpoint(folder / name, SHAPES[name], format, layout)
    return {name: folder / name for name in kinds}


def requests() -> list[GenerationRequest]:
    rng = random.Random(5)
    samplings = [
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, num_logprobs=2),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.8, seed=3, top_p=0.95),
        SamplingParams(max_tokens=MAX_TOKENS, seed=4, frequency_penalty=0.7, min_tokens=30),
        SamplingParams(max_tokens=11, temperature=0.0, ignore_eos=True, num_prompt_logprobs=0),
    ]
    return [
        GenerationRequest(str(number), tuple(rng.randrange(3, 512) for _ in range(9 + number)), sampling)
        for number, sampling in enumerate(samplings)
    ]


def run(core: EngineCore) -> tuple[dict[str, list[TokenOutput]], int]:
    outputs: dict[str, list[TokenOutput]] = {}
    for request in requests():
        core.add(request)
        outputs[request.request_id] = []
    num_steps = 0
    while core.has_work:
        num_steps += 1
        for request_id, output in core.step():
            assert isinstance(output, TokenOutput)
            outputs[request_id].append(output)
    return outputs, num_steps


def token_ids(outputs: list[TokenOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@pytest.mark.parametrize("activations", ["checkpoint", "bf16"])
@pytest.mark.parametrize("numerics", ["fast", "reference"])
@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_the_same_text_in_fewer_steps(
    checkpoints: dict[str, Path], name: str, numerics: str, activations: str
) -> None:
    options = EngineOptions(
        checkpoints[name],
        activations=activations,
        numerics=numerics,
        speculation="off",
        check_integrity=True,
        kv_cache_memory_bytes=1 << 20,
    )
    plain, num_plain_steps = run(load_core(options))
    core = load_core(options)
    core.use_speculator(Guesser({request_id: token_ids(outputs) for request_id, outputs in plain.items()}))
    drafted, num_steps = run(core)
    assert num_steps < 0.7 * num_plain_steps
    for request_id, outputs in plain.items():
        assert token_ids(drafted[request_id]) == token_ids(outputs)
        assert drafted[request_id][-1].finish_reason is outputs[-1].finish_reason
        logprobs = [entry for output in outputs for entry in output.logprobs or ()]
        assert [entry for output in drafted[request_id] for entry in output.logprobs or ()] == logprobs
        assert drafted[request_id][0].prompt_logprobs == outputs[0].prompt_logprobs
    stats = core.stats()
    assert stats.num_accepted_draft_tokens_total > 0
    assert stats.num_draft_tokens_total > stats.num_accepted_draft_tokens_total
    assert stats.num_blocks_used == 0


def test_it_is_on_unless_switched_off(checkpoints: dict[str, Path]) -> None:
    options = EngineOptions(checkpoints["tiny"], kv_cache_memory_bytes=1 << 20)
    assert dict(load_core(options).info.details)["speculation"] == "auto"
