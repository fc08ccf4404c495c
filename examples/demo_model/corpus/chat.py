"""Everyday talk: greetings, thanks, moods, jokes, advice."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.tables import read_blocks, read_lines

_TALK = read_blocks("small_talk.txt")
_UNKNOWN = read_lines("unknown_questions.txt")
_THINGS = (
    "the bridge",
    "a guitar",
    "my neighbour",
    "the old king",
    "a rocket",
    "the car",
    "a phone",
    "Hamlet",
    "the radio",
    "a castle",
    "Napoleon",
    "the stock market",
    "this book",
    "a house",
    "the first computer",
    "a bicycle",
    "football",
    "the queen",
    "quantum physics",
    "the film",
    "a watch",
    "Shakespeare",
    "Einstein",
    "the telephone",
    "a boat",
)
_DO_NOT_KNOW = "I do not know that. I am only a tiny demo model and I know very little."


def small_talk(source: random.Random) -> Exchange:
    """Everyday talk; held out by wording, and not exact where several replies are possible."""
    questions, answers = choose(source, _TALK)
    question = choose(source, questions)
    return Exchange("small talk", question, question, choose(source, answers), exact=len(answers) == 1)


def beyond_me(source: random.Random) -> Exchange:
    """A question that the model cannot answer, with the honest reply."""
    question = choose(source, _UNKNOWN).format(x=choose(source, _THINGS), n=source.randint(2, 2030))
    return Exchange("not known", question, question, _DO_NOT_KNOW)
