"""Makers of schedulers and requests with small defaults."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from engines.request import GenerationRequest, SamplingParams
from engines.scheduler import Scheduler, SchedulerConfig

MakeScheduler = Callable[..., Scheduler]
MakeRequest = Callable[..., GenerationRequest]


@pytest.fixture
def make_scheduler() -> MakeScheduler:
    def make(
        *,
        num_blocks: int = 16,
        block_size: int = 4,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        prefix_caching: bool = True,
        max_model_len: int = 64,
    ) -> Scheduler:
        return Scheduler(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=block_size,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                prefix_caching=prefix_caching,
                max_model_len=max_model_len,
            )
        )

    return make


@pytest.fixture
def make_request() -> MakeRequest:
    numbers = count()

    def make(
        prompt: int | tuple[int, ...] = 4,
        *,
        max_tokens: int = 8,
        priority: int = 0,
        num_prompt_logprobs: int | None = None,
    ) -> GenerationRequest:
        """`prompt` is the prompt's tokens, or how many of them, then unlike those of any other request."""
        number = next(numbers)
        tokens = prompt if isinstance(prompt, tuple) else tuple(range(1000 * number, 1000 * number + prompt))
        sampling = SamplingParams(max_tokens=max_tokens, num_prompt_logprobs=num_prompt_logprobs)
        return GenerationRequest(f"r{number}", tokens, sampling, priority)

    return make
