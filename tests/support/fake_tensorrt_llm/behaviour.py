"""What can be made to go wrong, and what has been seen."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Behaviour:
    """Switches may be turned at any time; `llms`, `received` and `results` are for the test to see.

    `is_out_of_memory`: LLM(...) fails as torch does. `may_load`: cleared, LLM(...) waits for it.
    `has_wrong_kernels`: the numbers are wrong and nothing says so. `refused_token`, `failing_token`: a prompt
    with this id is refused at submission, or fails while it runs. `crash_after_tokens`: a rank crashes once
    so many tokens were generated, with an error for everybody. `is_rank_lost`: a rank is gone, and the others
    wait for it. `is_hung`: nothing happens any more. `ignores_shutdown`: shutdown() never returns.
    """

    is_out_of_memory: bool = False
    has_wrong_kernels: bool = False
    refused_token: int | None = None
    failing_token: int | None = None
    crash_after_tokens: int | None = None
    is_rank_lost: bool = False
    is_hung: bool = False
    ignores_shutdown: bool = False
    may_load: threading.Event = field(default_factory=_set_event)
    llms: list[Any] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def is_stuck(self) -> bool:
        return self.is_hung or self.is_rank_lost
