"""Whose request it is, on whose account, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Account(Protocol):
    """The limits and the books of a key; see `service.keys.usage.KeyUsage`."""

    def check(self, num_tokens: int) -> None:
        """Raises RequestRateLimited, TokenRateLimited or BadRequest if the request may not come in."""

    def begin(self, num_tokens: int) -> None:
        """A request has come in; so many tokens are booked for it."""

    def count_refusal(self) -> None:
        """A request was not let in."""

    def end(self) -> None:
        """It has gone."""

    def adjust_tokens(self, num_tokens: int) -> None:
        """Book so many tokens more than before (fewer, if negative)."""

    def count_tokens(self, *, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Count what was used."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Whose request it is: a key's name and weight, or the one anonymous flow."""

    name: str = "anonymous"
    weight: float = 1.0
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for, estimated before its prompts are tokenised.

    `num_prompt_tokens` counts each prompt once, `num_choices` are the answers to each; `num_answer_tokens` is
    that of one answer. `priority`: lower is served first.
    """

    num_sequences: int
    num_prompt_tokens: int
    num_answer_tokens: int
    num_choices: int = 1
    priority: int = 0
    param: str = "n"

    @property
    def num_work_tokens(self) -> int:
        """What the engine has to compute: every sequence has its prompt."""
        return self.num_prompt_tokens * self.num_choices + self.num_answer_tokens * self.num_sequences

    @property
    def num_billed_tokens(self) -> int:
        """What is booked on the key: a prompt counts once, however many answers it gets."""
        return self.num_prompt_tokens + self.num_answer_tokens * self.num_sequences
