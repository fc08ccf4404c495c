"""Messages and cases that no engine of ours shows; the rest is in tests/contract/test_invalid_requests.py."""

from __future__ import annotations

import pytest

from engines.base import EngineInfo
from engines.errors import InvalidRequest, PromptTooLong, UnsupportedParameter
from engines.request_checks import check_request
from tests.support.generation import make_request

INFO = EngineInfo(
    engine="fake",
    vocab_size=100,
    max_model_len=10,
    eos_token_ids=frozenset({2}),
    block_size=16,
    num_blocks=4,
    max_num_seqs=2,
    max_num_logprobs=5,
    supports_prompt_logprobs=False,
)


def test_prompt_logprobs_where_there_are_none() -> None:
    with pytest.raises(UnsupportedParameter, match="'fake' has no log-probabilities of prompts") as caught:
        check_request(make_request((1,), num_prompt_logprobs=0), INFO)
    assert caught.value.param == "prompt_logprobs"


@pytest.mark.parametrize("num_logprobs", [0, 5])
def test_the_engine_says_how_many_logprobs_it_gives(num_logprobs: int) -> None:
    check_request(make_request((1,), num_logprobs=num_logprobs), INFO)
    with pytest.raises(InvalidRequest, match="logprobs is 6; expected 0 to 5"):
        check_request(make_request((1,), num_logprobs=6), INFO)


def test_a_prompt_may_leave_room_for_one_token_only_whatever_max_tokens_is() -> None:
    check_request(make_request(range(9), max_tokens=1000), INFO)
    with pytest.raises(PromptTooLong, match="the prompt has 10 tokens, but the context holds 10 tokens"):
        check_request(make_request(range(10), max_tokens=1000), INFO)


def test_the_wrong_token_id_is_named() -> None:
    with pytest.raises(InvalidRequest, match="prompt has token id 100; expected ids from 0 to 99"):
        check_request(make_request((1, 100, 200)), INFO)
    with pytest.raises(InvalidRequest, match="stop_token_ids has token id -3; expected ids from 0 to 99"):
        check_request(make_request((1,), stop_token_ids=frozenset({-3, 4})), INFO)
