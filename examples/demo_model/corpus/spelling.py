"""Tasks on the letters of a word, and sorting."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.words import FIRST_NAMES, WORDS

_SPELL = (
    "Spell {w}.",
    'Spell the word "{w}".',
    "How do you spell {w}?",
    'How is "{w}" spelled?',
    "Please spell {w}.",
    "Can you spell the word {w}?",
)
_REVERSE = (
    "Reverse the word {w}.",
    'Spell "{w}" backwards.',
    "Write {w} backwards.",
    "Reverse {w}.",
    'What is "{w}" spelled backwards?',
)
_COUNT = (
    "How many letters are in the word {w}?",
    'How many letters does "{w}" have?',
    "Count the letters in {w}.",
    "How long is the word {w}?",
)


def _quoted_answer(word: str) -> str:
    return "-".join(word)


def spelling(source: random.Random) -> Exchange:
    """The letters of a word, forwards or backwards."""
    word = choose(source, WORDS)
    if source.random() < 0.55:
        return Exchange("spelling", word, choose(source, _SPELL).format(w=word), f"{_quoted_answer(word)}.")
    answer = f"{word} backwards is {_quoted_answer(word[::-1])}."
    return Exchange("reversing", word, choose(source, _REVERSE).format(w=word), answer)


def letter_question(source: random.Random) -> Exchange:
    """How many letters, the first or the last letter, or how often a letter occurs."""
    word = choose(source, WORDS)
    form = source.random()
    if form < 0.4:
        answer = f"{_quoted_answer(word)}: {word} has {len(word)} letters."
        return Exchange("letter counting", word, choose(source, _COUNT).format(w=word), answer)
    if form < 0.7:
        position, letter = choose(source, (("first", word[0]), ("last", word[-1])))
        question = choose(
            source,
            (
                "What is the {p} letter of {w}?",
                "What is the {p} letter in the word {w}?",
                'Which letter does "{w}" {v} with?',
            ),
        )
        verb = "start" if position == "first" else "end"
        question = question.format(p=position, w=word, v=verb)
        return Exchange(
            "first letter", f"{position} {word}", question, f"The {position} letter of {word} is {letter}."
        )
    letter = choose(source, word)
    question = f"How many times does the letter {letter} occur in {word}?"
    count = word.count(letter)
    times = {1: "once", 2: "twice"}.get(count, f"{count} times")
    answer = f"{_quoted_answer(word)}: the letter {letter} occurs {times}."
    return Exchange("letter counting", word, question, answer)


def sorting(source: random.Random) -> Exchange:
    """Three to five numbers or words put in order."""
    size = source.randint(3, 5)
    if source.random() < 0.6:
        numbers = source.sample(range(choose(source, (20, 100, 100))), size)
        given, backwards = ", ".join(map(str, numbers)), source.random() < 0.3
        ordered = ", ".join(map(str, sorted(numbers, reverse=backwards)))
        if backwards:
            patterns = ("Sort these numbers from largest to smallest: {g}", "Sort in descending order: {g}")
        else:
            patterns = (
                "Sort these numbers: {g}",
                "Sort from smallest to largest: {g}",
                "Put in order: {g}",
                "Sort in ascending order: {g}",
                "Order these numbers: {g}",
            )
        return Exchange("sorting numbers", given, choose(source, patterns).format(g=given), ordered)
    words = source.sample(WORDS if source.random() < 0.8 else FIRST_NAMES, min(size, 4))
    given = ", ".join(words)
    pattern = choose(
        source,
        (
            "Sort these words alphabetically: {g}",
            "Sort alphabetically: {g}",
            "Put these words in alphabetical order: {g}",
            "Alphabetical order: {g}",
        ),
    )
    return Exchange("sorting words", given, pattern.format(g=given), ", ".join(sorted(words)))


def repetition(source: random.Random) -> Exchange:
    """Saying something again, counting up or down, or upper case."""
    form = source.random()
    if form < 0.5:
        said = " ".join(source.sample(WORDS, source.randint(1, 4)))
        pattern = choose(
            source, ("Repeat after me: {s}", 'Say "{s}".', "Please repeat: {s}", "Write: {s}", "Say {s}")
        )
        return Exchange("repetition", said, pattern.format(s=said), said)
    if form < 0.75:
        first, size = source.randint(0, 40), source.randint(3, 9)
        numbers = list(range(first, first + size + 1))
        if source.random() < 0.3:
            numbers.reverse()
        shown = ", ".join(map(str, numbers))
        return Exchange("repetition", shown, f"Count from {numbers[0]} to {numbers[-1]}.", shown)
    word = choose(source, WORDS)
    question = choose(source, ("Write {w} in capital letters.", "Write the word {w} in upper case."))
    return Exchange("upper case", word, question.format(w=word), word.upper())
