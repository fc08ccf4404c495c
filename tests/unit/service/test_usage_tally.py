"""Token counts over prompts and answers."""

from __future__ import annotations

from service.choices import UsageTally
from service.generation import TextOutput


def output(num_new_tokens: int, finish_reason: str | None, num_cached_tokens: int) -> TextOutput:
    return TextOutput(
        text="",
        num_new_tokens=num_new_tokens,
        tokens=(),
        prompt_logprobs=None,
        finish_reason=finish_reason,
        stop_reason=None,
        num_cached_tokens=num_cached_tokens,
        token_ids=tuple(range(num_new_tokens)),
    )


def test_cached_tokens_are_those_of_each_prompts_first_answer() -> None:
    tally = UsageTally(num_prompt_tokens=50, num_choices=2)
    for index, num_cached in enumerate((16, 24, 8, 24)):  # two prompts, two answers each
        tally.end(index, output(2, "stop", num_cached), 5 * (index + 1))
    assert tally.as_json() == {
        "prompt_tokens": 50,
        "completion_tokens": 20,
        "total_tokens": 70,
        "prompt_tokens_details": {"cached_tokens": 24},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
