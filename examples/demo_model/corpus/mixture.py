"""How much of what: single exchanges, conversations of several turns, and plain documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from examples.demo_model.corpus import (
    arithmetic,
    chat,
    definitions,
    extraction,
    facts,
    identity,
    memory,
    spelling,
    units,
)
from examples.demo_model.corpus.documents import document
from examples.demo_model.corpus.exchange import Exchange, choose, is_held_out

Maker = Callable[[random.Random], Exchange]

# weights of single exchanges, in per mille
_MAKERS: tuple[tuple[Maker, int], ...] = (
    (arithmetic.arithmetic, 150),
    (arithmetic.word_problem, 25),
    (arithmetic.comparison, 35),
    (arithmetic.sequence, 25),
    (spelling.spelling, 70),
    (spelling.letter_question, 55),
    (spelling.sorting, 60),
    (spelling.repetition, 30),
    (units.unit_conversion, 45),
    (units.temperature, 10),
    (facts.country_fact, 95),
    (facts.science_fact, 25),
    (facts.language_fact, 30),
    (facts.animal_fact, 25),
    (facts.calendar_fact, 20),
    (facts.single_fact, 30),
    (facts.yes_no, 40),
    (definitions.definition, 110),
    (chat.small_talk, 65),
    (chat.beyond_me, 25),
    (identity.identity, 70),
    (extraction.json_extraction, 35),
    (extraction.reading, 25),
    (memory.not_told, 10),
)
_FUNCTIONS = tuple(maker for maker, _ in _MAKERS)
_WEIGHTS = tuple(weight for _, weight in _MAKERS)

_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful and honest assistant.",
    "Answer briefly.",
    "Be polite.",
    "You are the demo model of Nybble.",
    "You are a friendly assistant. Answer in one sentence.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of one or more exchanges under an optional system message."""

    turns: tuple[Exchange, ...]
    system: str | None = None


def exchange(source: random.Random, *, held_out: bool = False) -> Exchange:
    """One exchange of the training part, or of the held-out one, by the mixture's weights."""
    while True:
        made = source.choices(_FUNCTIONS, _WEIGHTS)[0](source)
        if made.held_out == held_out:
            return made


def linked_pair(source: random.Random, *, held_out: bool = False) -> tuple[Exchange, Exchange]:
    """Two exchanges of which the second needs the first."""
    maker = memory.remembered if source.random() < 0.75 else memory.follow_up
    while True:
        pair = maker(source)
        if pair[1].held_out == held_out:
            return pair


def conversation(source: random.Random) -> Conversation:
    """A training conversation: one exchange, or up to eight, often with something to remember."""
    system = choose(source, _SYSTEM) if source.random() < 0.12 else None
    if source.random() < 0.5:
        return Conversation((_careless(source, exchange(source)),), system)
    turns: list[Exchange] = []
    if source.random() < 0.7:
        for _ in range(choose(source, (1, 1, 2))):
            _insert_pair(source, turns, *linked_pair(source))
    extend(source, turns, source.randint(0 if turns else 2, 4))
    return Conversation(tuple(_careless(source, turn) for turn in turns), system)


def long_conversation(source: random.Random, num_turns: int) -> Conversation:
    """A training conversation of about `num_turns` turns with things to remember over a long distance."""
    turns: list[Exchange] = []
    extend(source, turns, num_turns)
    for _ in range(max(1, num_turns // 6)):
        _insert_pair(source, turns, *linked_pair(source))
    return Conversation(tuple(_careless(source, turn) for turn in turns))


def extend(source: random.Random, turns: list[Exchange], count: int) -> None:
    """Put `count` unrelated exchanges anywhere but between a question and its follow-up."""
    while count:
        made = exchange(source)
        if made.task != "never told":
            turns.insert(choose(source, _places(turns)), made)
            count -= 1


def _insert_pair(source: random.Random, turns: list[Exchange], first: Exchange, second: Exchange) -> None:
    """Insert two linked exchanges in their order; one subject is told once in a conversation."""
    subject = first.key.split()[0]
    if any(turn.task == first.task == "memory" and turn.key.split()[0] == subject for turn in turns):
        return
    start = choose(source, _places(turns))
    turns.insert(start, first)
    end = start + 1
    if second.task != "follow-up":
        end = choose(source, [place for place in _places(turns) if place > start])
    turns.insert(end, second)


def _places(turns: list[Exchange]) -> list[int]:
    """The indices at which a turn can be inserted: all but those before a follow-up."""
    return [
        place for place in range(len(turns) + 1) if place == len(turns) or turns[place].task != "follow-up"
    ]


def _careless(source: random.Random, made: Exchange) -> Exchange:
    """Now and then the question is typed as people do: no capital, no full stop."""
    if source.random() < 0.85:
        return made
    question = made.question
    if made.task not in {"JSON extraction", "reading", "sorting words", "memory", "repetition"}:
        question = question[:1].lower() + question[1:]
    if question[-1:] in "?." and source.random() < 0.7:
        question = question[:-1]
    return replace(made, question=question)


def training_items(seed: int) -> Iterator[Conversation | str]:
    """An endless stream of conversations and plain documents, the same for the same seed."""
    source = random.Random(f"training {seed}")
    while True:
        if source.random() < 0.25:
            text = document(source)
            if not is_held_out("document", text):
                yield text
        else:
            yield conversation(source)


def held_out_exchanges(seed: int, per_task: int) -> dict[str, list[Exchange]]:
    """Up to `per_task` different held-out exchanges of every task with exact answers."""
    source = random.Random(f"held out {seed}")
    found: dict[str, dict[str, Exchange]] = {}
    for _ in range(per_task * 400):
        made = exchange(source, held_out=True)
        group = found.setdefault(made.task, {})
        if made.exact and len(group) < per_task:
            group.setdefault(made.question, made)
    return {task: list(group.values()) for task, group in sorted(found.items()) if group}


def held_out_pairs(seed: int, count: int) -> list[tuple[Exchange, Exchange]]:
    """Held-out pairs whose second question needs the first exchange."""
    source = random.Random(f"held-out pairs {seed}")
    return [linked_pair(source, held_out=True) for _ in range(count)]


def held_out_documents(seed: int, count: int) -> list[str]:
    """Different plain documents of which none occurs in training."""
    source = random.Random(f"held-out documents {seed}")
    texts: dict[str, None] = {}
    while len(texts) < count:
        text = document(source)
        if is_held_out("document", text):
            texts[text] = None
    return list(texts)
