"""Conversations in which something said early is asked for later."""

from __future__ import annotations

import random
from dataclasses import dataclass

from examples.demo_model.corpus.countries import COUNTRIES
from examples.demo_model.corpus.exchange import Exchange, choose, is_held_out
from examples.demo_model.corpus.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    FIRST_NAMES,
    FOODS,
    HOBBIES,
    JOBS,
    PET_NAMES,
)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a user tells, how the model replies, how it is asked for later, and the answer."""

    name: str
    values: tuple[str, ...]
    tell: tuple[str, ...]
    reply: str
    ask: tuple[str, ...]
    answer: str
    not_told: str


_SUBJECTS = (
    _Subject(
        "name",
        FIRST_NAMES,
        (
            "My name is {v}.",
            "Hi, I am {v}.",
            "Hello, my name is {v}.",
            "I'm {v}.",
            "Hi! I'm {v}.",
            "Call me {v}.",
            "You can call me {v}.",
            "Hello, I am {v}. Nice to meet you.",
        ),
        "Nice to meet you, {v}!",
        (
            "What is my name?",
            "What's my name?",
            "Do you remember my name?",
            "Who am I?",
            "Do you know my name?",
            "What did I say my name was?",
        ),
        "Your name is {v}.",
        "You have not told me your name.",
    ),
    _Subject(
        "city",
        CITIES,
        ("I live in {v}.", "My home is in {v}.", "I am from {v}.", "I come from {v}."),
        "{v} is an interesting place.",
        ("Where do I live?", "Which city am I from?", "Where am I from?"),
        "You told me that you live in {v}.",
        "You have not told me where you live.",
    ),
    _Subject(
        "colour",
        COLOURS,
        ("My favourite colour is {v}.", "I like the colour {v}.", "My favorite color is {v}."),
        "{V} is a nice colour.",
        ("What is my favourite colour?", "Which colour do I like?", "What is my favorite color?"),
        "Your favourite colour is {v}.",
        "You have not told me your favourite colour.",
    ),
    _Subject(
        "food",
        FOODS,
        ("My favourite food is {v}.", "I love to eat {v}.", "I like {v} best."),
        "{V} sounds delicious.",
        ("What is my favourite food?", "What do I like to eat?", "Which food do I like?"),
        "Your favourite food is {v}.",
        "You have not told me your favourite food.",
    ),
    _Subject(
        "job",
        JOBS,
        ("I work as a {v}.", "My job is {v}.", "I am a {v}."),
        "That is an interesting job.",
        ("What is my job?", "What do I do for work?", "What do I work as?"),
        "You told me that your job is {v}.",
        "You have not told me your job.",
    ),
    _Subject(
        "hobby",
        HOBBIES,
        ("My hobby is {v}.", "In my free time I like {v}.", "I enjoy {v}."),
        "{V} is a fine hobby.",
        ("What is my hobby?", "What do I like to do?", "What do I enjoy?"),
        "Your hobby is {v}.",
        "You have not told me your hobby.",
    ),
    _Subject(
        "pet",
        tuple(f"{animal} {name}" for animal in ANIMALS for name in PET_NAMES),
        ("I have a {a} called {n}.", "My {a} is called {n}.", "I have a {a}. Its name is {n}."),
        "{n} is a lovely name for a {a}.",
        ("What is my {a} called?", "What is the name of my {a}?", "Do you remember the name of my {a}?"),
        "Your {a} is called {n}.",
        "You have not told me about your {a}.",
    ),
    _Subject(
        "age",
        tuple(str(age) for age in range(8, 90)),
        ("I am {v} years old.", "My age is {v}.", "I'm {v} years old."),
        "Thank you for telling me that you are {v}.",
        ("How old am I?", "What is my age?", "Do you know how old I am?"),
        "You are {v} years old.",
        "You have not told me your age.",
    ),
    _Subject(
        "number",
        tuple(str(number) for number in range(2, 1000)),
        ("Remember the number {v}.", "Please remember this number: {v}", "My lucky number is {v}."),
        "I will remember the number {v}.",
        ("Which number did I tell you?", "What was the number?", "What is my number?"),
        "The number is {v}.",
        "You have not told me a number.",
    ),
)


def _fill(pattern: str, value: str) -> str:
    animal, _, name = value.partition(" ")
    return pattern.format(v=value, V=value[:1].upper() + value[1:], a=animal, n=name)


def remembered(source: random.Random) -> tuple[Exchange, Exchange]:
    """An exchange that tells something and a later one that asks for it."""
    subject = choose(source, _SUBJECTS if source.random() < 0.6 else _SUBJECTS[:1])
    value = choose(source, subject.values)
    key = f"{subject.name} {value}"
    told = Exchange("memory", key, _fill(choose(source, subject.tell), value), _fill(subject.reply, value))
    return told, Exchange(
        "memory", key, _fill(choose(source, subject.ask), value), _fill(subject.answer, value)
    )


def not_told(source: random.Random) -> Exchange:
    """A question about something that was never said; only for conversations where it was not."""
    subject = choose(source, _SUBJECTS if source.random() < 0.6 else _SUBJECTS[:1])
    animal = choose(source, ANIMALS)
    question = choose(source, subject.ask).format(a=animal)
    return Exchange("never told", question + subject.name, question, subject.not_told.format(a=animal))


def _trained_sums(source: random.Random) -> tuple[int, int, int]:
    """Three numbers to add up one after the other, neither sum one that the task addition holds out."""
    while True:
        a, b, c = source.randint(1, 40), source.randint(1, 40), source.randint(1, 10)
        sums = ((a, b), (a + b, c))
        if not any(is_held_out("addition", f"{min(pair)} {max(pair)}") for pair in sums):
            return a, b, c


def follow_up(source: random.Random) -> tuple[Exchange, Exchange]:
    """A question and a second one that makes sense only after it."""
    if source.random() < 0.6:
        first, second = source.sample(COUNTRIES, 2)
        start = Exchange(
            "follow-up",
            f"{first.name} {second.name}",
            f"What is the capital of {first.name}?",
            f"The capital of {first.name} is {first.capital}.",
        )
        pattern, answer = choose(
            source,
            (
                ("And of {s}?", "The capital of {s} is {c}."),
                ("And what about {s}?", "The capital of {s} is {c}."),
                ("And the capital of {s}?", "The capital of {s} is {c}."),
            ),
        )
        return start, Exchange(
            "follow-up",
            start.key,
            pattern.format(s=second.name),
            answer.format(s=second.name, c=second.capital),
        )
    a, b, c = _trained_sums(source)
    start = Exchange("follow-up", f"{a} {b} {c}", f"What is {a} + {b}?", f"{a} + {b} = {a + b}.")
    pattern = choose(source, ("And plus {c}?", "Now add {c}.", "Add {c} to that."))
    return start, Exchange("follow-up", start.key, pattern.format(c=c), f"{a + b} + {c} = {a + b + c}.")
