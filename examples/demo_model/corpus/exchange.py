"""One question with its answer, how it is held out of training, and how it is written as a chat turn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

HELD_OUT_SHARE = 16  # one example in so many never occurs in training

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's message and the expected answer.

    `task` is what the evaluation groups by; `key` says which example of the task it is: all exchanges with
    the same task and key are in training together or held out together. `exact` is false where several
    answers would do as well, so that an exact comparison says nothing. `family`, where given, takes the
    place of the task in that choice, so that the same sum is held out in every task it occurs in.
    """

    task: str
    key: str
    question: str
    answer: str
    exact: bool = True
    family: str = ""

    @property
    def held_out(self) -> bool:
        """Whether the example belongs to the held-out part. Depends on family (or task) and key only."""
        return is_held_out(self.family or self.task, self.key)


def is_held_out(task: str, key: str) -> bool:
    """A fixed pseudo-random choice of one example in HELD_OUT_SHARE."""
    digest = hashlib.sha256(f"{task}\0{key}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % HELD_OUT_SHARE == 0


def choose(source: random.Random, options: Sequence[T]) -> T:
    """One of `options`, all equally likely."""
    return options[source.randrange(len(options))]


def chat_text(turns: Sequence[tuple[str, str]], system: str | None = None) -> str:
    """A conversation of (question, answer) turns exactly as chat_template.jinja writes it."""
    parts = ["<s>"]
    for index, (question, answer) in enumerate(turns):
        instructions = f"{system}\n\n" if system is not None and index == 0 else ""
        parts.append(f"[INST] {instructions}{question} [/INST] {answer}</s>")
    return "".join(parts)
