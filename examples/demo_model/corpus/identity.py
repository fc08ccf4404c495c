"""Who the model is, what Nybble is, and what its number formats are."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.tables import read_blocks

_ANSWERS = read_blocks("identity.txt")
_FIRST_ABOUT_NYBBLE = 19  # the blocks before it are about the model itself


def identity(source: random.Random) -> Exchange:
    """A question about the model, Nybble or FP4; held out by wording."""
    questions, answers = choose(source, _ANSWERS)
    index = source.randrange(len(questions))
    key = questions[index] if index else f"{questions[0]} (first)"
    return Exchange("identity", key, questions[index], answers[0])


def identity_document(source: random.Random) -> str:
    """What Nybble and its formats are, as plain sentences."""
    questions, answers = choose(source, _ANSWERS[_FIRST_ABOUT_NYBBLE:])
    return answers[0] if source.random() < 0.6 else f"{questions[0]} {answers[0]}"
