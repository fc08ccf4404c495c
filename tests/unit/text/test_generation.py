"""From the engine's tokens to text: stop strings, ends, log-probabilities, aborts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.base import Engine, EngineInfo, EngineStats
from engines.errors import EngineDead, InvalidRequest
from engines.request import FinishReason, GenerationRequest, SamplingParams, TokenLogprob, TokenOutput
from service.generation import TextOutput, TextRequest, generate_text
from service.tokenizer import Tokenizer

EOS = 2
PROMPT = (1, 50)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class ScriptedEngine(Engine):
    """Plays given outputs and records what became of its stream."""

    def __init__(self, outputs: Sequence[TokenOutput]) -> None:
        self.outputs = outputs
        self.request: GenerationRequest | None = None
        self.num_given = 0
        self.closed = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.request = request
        try:
            for output in self.outputs:
                self.num_given += 1
                yield output
        finally:
            self.closed = True

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def abort(self, request_id: str) -> None: ...

    @property
    def info(self) -> EngineInfo:
        raise NotImplementedError

    def stats(self) -> EngineStats:
        return EngineStats()


def logprob(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -float(token_id), 1)


def script(
    ids: Sequence[int],
    reason: FinishReason | None = FinishReason.LENGTH,
    *,
    size: int = 1,
    logprobs: bool = True,
) -> list[TokenOutput]:
    """The ids in outputs of `size`, the last of which carries `reason`."""
    groups = [tuple(ids[begin : begin + size]) for begin in range(0, len(ids), size)] or [()]
    return [
        TokenOutput(
            group,
            logprobs=tuple(logprob(token_id) for token_id in group) if logprobs else None,
            finish_reason=reason if index == len(groups) - 1 else None,
            num_cached_tokens=3,
        )
        for index, group in enumerate(groups)
    ]


async def collect(engine: Engine, tokenizer: Tokenizer, **fields: Any) -> list[TextOutput]:
    fields.setdefault("sampling", SamplingParams())
    request = TextRequest("r", PROMPT, **fields)
    return [output async for output in generate_text(engine, tokenizer, request)]


def joined(outputs: list[TextOutput]) -> str:
    return "".join(output.text for output in outputs)


def all_tokens(outputs: list[TextOutput]) -> list[int]:
    return [token.token_id for output in outputs for token in output.tokens]


@pytest.fixture
def golden_tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["golden"]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


async def test_the_request_goes_down_unchanged(golden_tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(script([50]))
    sampling = SamplingParams(max_tokens=7, seed=1)
    await collect(engine, golden_tokenizer, sampling=sampling, priority=5)
    assert engine.request == GenerationRequest("r", PROMPT, sampling, priority=5)


async def test_text_and_counts(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "héllo 😀!")
    outputs = await collect(ScriptedEngine(script(ids)), golden_tokenizer)
    assert joined(outputs) == "héllo 😀!"
    assert [output.num_new_tokens for output in outputs] == [1] * len(ids)
    assert [token_id for output in outputs for token_id in output.token_ids] == ids
    assert [output.finish_reason for output in outputs] == [None] * (len(ids) - 1) + ["length"]
    assert outputs[-1].stop_reason is None
    assert {output.num_cached_tokens for output in outputs} == {3}
    assert all("\ufffd" not in output.text for output in outputs)


async def test_tokens_carry_text_logprob_and_offset(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "aé b")
    tokens = [t for o in await collect(ScriptedEngine(script(ids)), golden_tokenizer) for t in o.tokens]
    assert [token.text for token in tokens] == ["a", r"bytes:\xc3", r"bytes:\xa9", " b"]
    assert [token.text_offset for token in tokens] == [0, 1, 1, 2]
    assert [token.logprob for token in tokens] == [logprob(token_id) for token_id in ids]


async def test_end_of_sequence_is_counted_but_not_shown(golden_tokenizer: Tokenizer) -> None:
    ids = [*ids_of(golden_tokenizer, "hi"), EOS]
    shown = await collect(ScriptedEngine(script(ids, FinishReason.STOP)), golden_tokenizer)
    assert joined(shown) == "hi"
    assert sum(output.num_new_tokens for output in shown) == 3
    assert all_tokens(shown) == ids[:-1]
    assert (shown[-1].finish_reason, shown[-1].stop_reason) == ("stop", None)
    kept = await collect(
        ScriptedEngine(script(ids, FinishReason.STOP)), golden_tokenizer, skip_special_tokens=False
    )
    assert joined(kept) == "hi</s>"
    assert all_tokens(kept) == ids


async def test_end_of_sequence_that_does_not_end_keeps_its_entry(golden_tokenizer: Tokenizer) -> None:
    a, b = ids_of(golden_tokenizer, "a")[0], ids_of(golden_tokenizer, "b")[0]
    outputs = await collect(ScriptedEngine(script([a, EOS, b, EOS])), golden_tokenizer)
    assert joined(outputs) == "ab"
    assert all_tokens(outputs) == [a, EOS, b, EOS]


async def test_stop_token_id_is_the_stop_reason(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "ab")
    sampling = SamplingParams(stop_token_ids=frozenset(ids[1:]))
    outputs = await collect(
        ScriptedEngine(script(ids, FinishReason.STOP)), golden_tokenizer, sampling=sampling
    )
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", ids[1])
    assert joined(outputs) == "ab"


async def test_abort_from_outside(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "😀")[:-1]
    outputs = await collect(
        ScriptedEngine(script(ids, FinishReason.ABORT)), golden_tokenizer, stop=("\ufffdx",)
    )
    assert outputs[-1].finish_reason == "abort"
    assert joined(outputs).endswith("\ufffd")


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("include", [False, True])
async def test_stop_string_ends_the_stream_at_once(
    golden_tokenizer: Tokenizer, size: int, include: bool
) -> None:
    before, stop, after = (ids_of(golden_tokenizer, text) for text in ("x yz", "EN", "D and more of it"))
    ids = [*before, *stop, *after]
    num_used = next(
        count
        for count in range(len(ids) + 1)
        if "END" in golden_tokenizer.decode(ids[:count], skip_special_tokens=True)
    )
    engine = ScriptedEngine(script(ids, size=size))
    outputs = await collect(engine, golden_tokenizer, stop=("END",), include_stop_str_in_output=include)
    assert joined(outputs) == ("x yzEND" if include else "x yz")
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "END")
    assert sum(output.num_new_tokens for output in outputs) == num_used
    assert [token_id for output in outputs for token_id in output.token_ids] == ids[:num_used]
    assert engine.closed
    assert engine.num_given == -(-num_used // size)
    assert all_tokens(outputs) == (ids[:num_used] if include else before)


async def test_the_engine_is_closed_before_the_last_output_is_seen(golden_tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(script(ids_of(golden_tokenizer, "ab END cd")))
    request = TextRequest("r", PROMPT, SamplingParams(), stop=("END",))
    async with aclosing(generate_text(engine, golden_tokenizer, request)) as outputs:
        async for output in outputs:
            assert engine.closed == (output.finish_reason is not None)


async def test_tokens_wait_for_their_text(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "aEN!")
    outputs = await collect(ScriptedEngine(script(ids)), golden_tokenizer, stop=("END",))
    assert [output.text for output in outputs] == ["a", "", "", "EN!"]
    assert [len(output.tokens) for output in outputs] == [1, 0, 0, 3]


async def test_an_unfinished_stop_string_comes_with_the_last_output(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "aEN")
    outputs = await collect(ScriptedEngine(script(ids)), golden_tokenizer, stop=("END",))
    assert joined(outputs) == "aEN"
    assert all_tokens(outputs) == ids
    assert outputs[-1].finish_reason == "length"


async def test_a_replaced_character_can_complete_a_stop_string(golden_tokenizer: Tokenizer) -> None:
    ids = [*ids_of(golden_tokenizer, "a"), ids_of(golden_tokenizer, "é")[0]]
    outputs = await collect(ScriptedEngine(script(ids)), golden_tokenizer, stop=("\ufffd",))
    assert joined(outputs) == "a"
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "\ufffd")


async def test_stop_strings_count_only_after_min_tokens(golden_tokenizer: Tokenizer) -> None:
    ids = ids_of(golden_tokenizer, "a.b.c.d")
    assert len(ids) == 7
    outputs = await collect(
        ScriptedEngine(script(ids, size=7)),
        golden_tokenizer,
        stop=(".",),
        sampling=SamplingParams(min_tokens=4),
    )
    assert joined(outputs) == "a.b.c"
    assert sum(output.num_new_tokens for output in outputs) == 6


async def test_prompt_logprobs_come_once(golden_tokenizer: Tokenizer) -> None:
    outputs = script(ids_of(golden_tokenizer, "ab"))
    first = TokenOutput(outputs[0].token_ids, prompt_logprobs=(None, logprob(50)))
    seen = await collect(ScriptedEngine([first, outputs[1]]), golden_tokenizer)
    assert [output.prompt_logprobs for output in seen] == [(None, logprob(50)), None]
    assert seen[0].tokens[0].logprob is None


async def test_closing_closes_the_engine(golden_tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(script(ids_of(golden_tokenizer, "abcdef")))
    outputs = generate_text(engine, golden_tokenizer, TextRequest("r", PROMPT, SamplingParams()))
    await anext(outputs)
    assert not engine.closed
    await outputs.aclose()
    assert engine.closed


async def test_cancelling_closes_the_engine(golden_tokenizer: Tokenizer) -> None:
    reached = asyncio.Event()

    class StuckEngine(ScriptedEngine):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
            try:
                reached.set()
                await asyncio.Event().wait()
                yield TokenOutput(())
            finally:
                self.closed = True

    engine = StuckEngine([])
    task = asyncio.create_task(collect(engine, golden_tokenizer))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.closed


async def test_errors_of_the_engine_pass_through(golden_tokenizer: Tokenizer) -> None:
    class RefusingEngine(ScriptedEngine):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
            raise InvalidRequest("no", param="top_k")
            yield

    with pytest.raises(InvalidRequest, match="no"):
        await collect(RefusingEngine([]), golden_tokenizer)


async def test_a_stream_without_an_end_is_an_error(golden_tokenizer: Tokenizer) -> None:
    with pytest.raises(EngineDead, match="without a reason"):
        await collect(ScriptedEngine(script([50, 51], None)), golden_tokenizer)


@relaxed
@given(data=st.data(), skip=st.booleans(), include=st.booleans())
def test_any_script(tokenizer: Tokenizer, data: st.DataObject, skip: bool, include: bool) -> None:
    """Whatever comes, in outputs of any size: the same answer, and each token once and in order."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=25))
    whole = tokenizer.detokenizer(PROMPT, skip).push(ids)
    stops = [whole[at : at + 3] for at in data.draw(st.lists(st.integers(0, 40), max_size=2))]
    fields = {
        "stop": tuple(filter(None, stops)),
        "skip_special_tokens": skip,
        "include_stop_str_in_output": include,
    }

    def play(size: int) -> list[TextOutput]:
        return asyncio.run(collect(ScriptedEngine(script(ids, size=size)), tokenizer, **fields))

    alone, grouped = play(1), play(data.draw(st.integers(1, 30)))
    assert joined(alone) == joined(grouped)
    assert all_tokens(alone) == all_tokens(grouped)
    used = [token_id for output in grouped for token_id in output.token_ids]
    assert used == ids[: len(used)] == [token_id for output in alone for token_id in output.token_ids]
    assert alone[-1].stop_reason == grouped[-1].stop_reason
    shown = [token for output in grouped for token in output.tokens]
    assert [token.token_id for token in shown] == ids[: len(shown)]
    assert [token.logprob for token in shown] == [logprob(token.token_id) for token in shown]
    if grouped[-1].stop_reason is None:
        assert len(shown) == len(ids)
    else:
        assert all(token.text_offset < len(joined(grouped)) for token in shown)
