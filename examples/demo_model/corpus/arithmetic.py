"""Sums, differences, products and quotients of small whole numbers, in several phrasings."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.words import FIRST_NAMES, ITEMS

_ASK = (
    "What is {q}?",
    "What is {q}?",
    "Calculate {q}.",
    "{q} = ?",
    "{q}",
    "How much is {q}?",
    "Compute {q}.",
    "Can you work out {q}?",
    "Please calculate {q}.",
    "What does {q} equal?",
    "Solve {q}.",
)
_SPOKEN = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} minus {b}", "{a} take away {b}"),
    "*": ("{a} times {b}", "{a} multiplied by {b}"),
    "/": ("{a} divided by {b}",),
}
_TASKS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}


def _operands(source: random.Random) -> tuple[int, str, int, int]:
    operator = choose(source, "+++---**/")
    if operator in "+-":
        top = choose(source, (10, 20, 50, 100, 100))
        a, b = source.randrange(top), source.randrange(top)
        if operator == "-" and a < b:
            a, b = b, a
        return a, operator, b, a + b if operator == "+" else a - b
    a, b = source.randint(0, 12), source.randint(1, 12)
    return (a, operator, b, a * b) if operator == "*" else (a * b, operator, b, a)


def arithmetic(source: random.Random) -> Exchange:
    """A calculation with one operator; a pair of operands is held out in all phrasings, either way round."""
    a, operator, b, result = _operands(source)
    task = _TASKS[operator]
    low, high = (min(a, b), max(a, b)) if operator in "+*" else (a, b)
    written = f"{a} {operator} {b}"
    form = source.random()
    asked = written
    if form < 0.25:
        asked = choose(source, _SPOKEN[operator]).format(a=a, b=b)
    elif form < 0.35:
        asked = f"{a}{operator}{b}"
    elif form < 0.45 and operator == "*":
        asked = f"{a} x {b}"
    question = choose(source, _ASK[:4] if form < 0.25 else _ASK).format(q=asked)
    return Exchange(task, f"{low} {high}", question, f"{written} = {result}.")


def word_problem(source: random.Random) -> Exchange:
    """A story of gaining or losing things."""
    name, item = choose(source, FIRST_NAMES), choose(source, ITEMS)
    a, b = source.randint(1, 30), source.randint(1, 20)
    if source.random() < 0.5:
        verb = choose(source, ("buys", "gets", "finds"))
        question = f"{name} has {a} {item} and {verb} {b} more. How many {item} does {name} have now?"
        answer = f"{a} + {b} = {a + b}, so {name} has {a + b} {item}."
        return Exchange("word problem", f"{min(a, b)} {max(a, b)}", question, answer, family="addition")
    a += b
    verb = choose(source, ("gives away", "loses", "sells"))
    question = f"{name} has {a} {item} and {verb} {b}. How many {item} are left?"
    answer = f"{a} - {b} = {a - b}, so {a - b} {item} are left."
    return Exchange("word problem", f"{a} {b}", question, answer, family="subtraction")


def comparison(source: random.Random) -> Exchange:
    """Which of two numbers is larger or smaller, or whether one is even or odd."""
    if source.random() < 0.35:
        number = source.randint(0, 999)
        kind = "even" if number % 2 == 0 else "odd"
        question = choose(
            source, ("Is {n} even or odd?", "Is the number {n} even or odd?", "Even or odd: {n}")
        )
        return Exchange("comparison", f"parity {number}", question.format(n=number), f"{number} is {kind}.")
    a, b = source.sample(range(100 if source.random() < 0.6 else 1000), 2)
    larger = source.random() < 0.5
    word = choose(source, ("larger", "bigger", "greater")) if larger else "smaller"
    pattern = choose(
        source, ("Which number is {w}, {a} or {b}?", "Which is {w}: {a} or {b}?", "What is {w}, {a} or {b}?")
    )
    result = max(a, b) if larger else min(a, b)
    return Exchange(
        "comparison", f"{min(a, b)} {max(a, b)}", pattern.format(w=word, a=a, b=b), f"{result} is {word}."
    )


def sequence(source: random.Random) -> Exchange:
    """The next number of an arithmetic sequence, or the neighbours of a number."""
    if source.random() < 0.5:
        number, after = source.randint(1, 199), source.random() < 0.5
        question = f"What number comes {'after' if after else 'before'} {number}?"
        result = number + 1 if after else number - 1
        answer = f"The number {'after' if after else 'before'} {number} is {result}."
        return Exchange("sequence", f"next {number}", question, answer)
    first, step = source.randint(0, 30), source.randint(1, 10)
    shown = ", ".join(str(first + step * index) for index in range(4))
    pattern = choose(
        source, ("What comes next: {s}?", "Continue the sequence: {s}", "Which number follows {s}?")
    )
    return Exchange(
        "sequence", f"{first} {step}", pattern.format(s=shown), f"The next number is {first + 4 * step}."
    )
