"""What is particular to echo; what it shares with every engine is in tests/contract."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineOptions
from engines.echo import EchoEngine
from engines.errors import EngineUnavailable, MalformedCheckpoint
from engines.request import FinishReason, SamplingParams
from tests.support.generation import collect, generate_ids, joined, make_request


async def started(options: EngineOptions | None = None, **arguments: Any) -> EchoEngine:
    engine = EchoEngine(options or EngineOptions(), **arguments)
    await engine.start()
    return engine


async def test_it_repeats_the_prompt_once_and_ends() -> None:
    outputs = await collect(await started(), make_request((7, 8, 9), max_tokens=100, ignore_eos=False))
    assert joined(outputs) == [7, 8, 9, 2]
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_past_the_end_it_repeats_the_prompt_again() -> None:
    assert await generate_ids(await started(), make_request((7, 8, 9))) == [7, 8, 9, 7, 8, 9, 7, 8]


async def test_end_of_sequence_within_the_prompt_is_not_repeated() -> None:
    engine = await started()
    request = make_request((7, 2, 9), ignore_eos=False)
    assert await generate_ids(engine, request) == [7, 9, 2]
    assert await generate_ids(engine, make_request((2, 2), ignore_eos=False)) == [2]
    assert await generate_ids(engine, make_request((7, 2, 9), max_tokens=3)) == [7, 2, 9]


async def test_before_min_tokens_a_filler_stands_for_tokens_that_stop() -> None:
    request = make_request((7, 0, 9), min_tokens=4, stop_token_ids=frozenset({0, 7}), ignore_eos=False)
    assert await generate_ids(await started(), request) == [1, 1, 9, 1, 2]
    assert await generate_ids(await started(), make_request((2,), min_tokens=2, ignore_eos=False)) == [
        0,
        0,
        2,
    ]


async def test_without_an_end_of_sequence_id_only_max_tokens_ends_it() -> None:
    engine = await started(eos_token_ids=frozenset())
    assert await generate_ids(engine, make_request((7, 8), max_tokens=5, ignore_eos=False)) == [7, 8, 7, 8, 7]


async def test_facts_come_from_the_arguments_and_options() -> None:
    info = (await started(EngineOptions(max_num_seqs=3), vocab_size=11, eos_token_ids=frozenset({4}))).info
    assert (info.vocab_size, info.eos_token_ids, info.max_model_len) == (11, {4}, 4096)
    assert (info.max_num_seqs, info.num_blocks, info.max_num_logprobs) == (3, 0, 11)
    assert (await started(EngineOptions(max_model_len=77))).info.max_model_len == 77


async def test_facts_come_from_a_checkpoints_config(tmp_path: Path) -> None:
    config = {"vocab_size": 1000, "eos_token_id": [5, 6], "max_position_embeddings": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = (await started(EngineOptions(checkpoint=tmp_path))).info
    assert (info.vocab_size, info.eos_token_ids, info.max_model_len) == (1000, {5, 6}, 99)
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    info = (await started(EngineOptions(checkpoint=tmp_path))).info
    assert (info.vocab_size, info.eos_token_ids, info.max_model_len) == (320, frozenset(), 4096)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", "holds list"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"vocab_size": "9"}', "vocab_size is '9'"),
        ('{"vocab_size": 0}', "vocab_size is 0"),
        ('{"eos_token_id": [true]}', "eos_token_id is True"),
        ('{"eos_token_id": [[1]]}', r"eos_token_id is \[1\]"),
        ('{"max_position_embeddings": 1.5}', "max_position_embeddings is 1.5"),
    ],
    ids=["list", "cut", "deep", "text", "zero", "bool", "nested", "fraction"],
)
async def test_a_bad_config_is_named(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(MalformedCheckpoint, match=message):
        await started(EngineOptions(checkpoint=tmp_path))


def test_info_before_start_is_an_error() -> None:
    with pytest.raises(EngineUnavailable, match="start"):
        _ = EchoEngine(EngineOptions()).info


async def test_tokens_take_the_time_they_are_told_to() -> None:
    engine = await started(seconds_per_token=0.01)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert len(await generate_ids(engine, make_request(max_tokens=5))) == 5
    assert loop.time() - begun >= 0.05


def test_the_helper_asks_for_what_it_says() -> None:
    assert make_request(request_id="x").sampling == SamplingParams(
        max_tokens=8, temperature=0.0, ignore_eos=True
    )
