"""The demo models' corpus: the same each time, right where it can be checked, held-out part kept apart."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from examples.demo_model.corpus import arithmetic, extraction, memory, spelling, units
from examples.demo_model.corpus.exchange import Exchange, chat_text, is_held_out
from examples.demo_model.corpus.mixture import (
    Conversation,
    conversation,
    held_out_documents,
    held_out_exchanges,
    held_out_pairs,
    long_conversation,
    training_items,
)
from examples.demo_model.corpus.tables import read_blocks, read_columns

NUM_ITEMS = 6_000

# The shipped checkpoints were trained on exactly this text: who changes it has to train anew.
DIGEST = "967dd987bb0d477c1ae04571a562d8117ef91a79783bd67b2cad32b22e097e99"


@pytest.fixture(scope="module")
def items() -> list[Conversation | str]:
    return list(itertools.islice(training_items(0), NUM_ITEMS))


@pytest.fixture(scope="module")
def exchanges(items: list[Conversation | str]) -> list[Exchange]:
    return [turn for item in items if isinstance(item, Conversation) for turn in item.turns]


def made_by(maker: Callable[[random.Random], Exchange], count: int = 2_000) -> Iterator[Exchange]:
    source = random.Random(1)
    return (maker(source) for _ in range(count))


def written(item: Conversation | str) -> str:
    if isinstance(item, str):
        return item
    return chat_text([(turn.question, turn.answer) for turn in item.turns], item.system)


def digest(items: list[Conversation | str]) -> str:
    return hashlib.sha256("\n".join(map(written, items)).encode()).hexdigest()


def test_the_text_is_the_one_the_checkpoints_were_trained_on(items: list[Conversation | str]) -> None:
    assert digest(items) == DIGEST


def test_another_process_generates_the_same(items: list[Conversation | str]) -> None:
    program = (
        "import itertools; from examples.demo_model.corpus.mixture import training_items;"
        "print([repr(item) for item in itertools.islice(training_items(0), 300)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str([repr(item) for item in items[:300]])


def test_another_seed_generates_something_else(items: list[Conversation | str]) -> None:
    assert list(itertools.islice(training_items(1), 50)) != items[:50]


def test_training_holds_nothing_that_is_held_out(
    items: list[Conversation | str], exchanges: list[Exchange]
) -> None:
    assert not [made for made in exchanges if made.held_out]
    documents = [item for item in items if isinstance(item, str)]
    assert documents
    assert not set(documents) & set(held_out_documents(20_000, 300))
    asked = {(made.task, made.question) for made in exchanges}
    for task, group in held_out_exchanges(20_000, 40).items():
        assert not asked & {(task, made.question) for made in group}


def test_a_sum_held_out_is_in_no_training_text(items: list[Conversation | str]) -> None:
    seen = set()
    for item in items:
        for a, b in re.findall(r"(?<![\d+] )\b(\d+) \+ (\d+) =", repr(item)):
            seen.add(tuple(sorted((int(a), int(b)))))
    assert len(seen) > 500
    assert not [pair for pair in seen if is_held_out("addition", f"{pair[0]} {pair[1]}")]


def test_one_example_in_sixteen_is_held_out() -> None:
    keys = [f"{a} {b}" for a in range(100) for b in range(a, 100)]
    share = sum(is_held_out("addition", key) for key in keys) / len(keys)
    assert share == pytest.approx(1 / 16, rel=0.1)


def test_held_out_questions_cover_the_tasks() -> None:
    groups = held_out_exchanges(20_000, 40)
    assert len(groups) > 30
    assert all(made.held_out and made.exact for group in groups.values() for made in group)
    assert {"addition", "capital", "definition", "identity", "spelling", "JSON extraction"} <= set(groups)
    assert all(pair[1].held_out for pair in held_out_pairs(20_000, 40))


def test_sums_are_right() -> None:
    signs = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for made in made_by(arithmetic.arithmetic):
        a, sign, b, _, result = made.answer.rstrip(".").split(" ")
        assert signs[sign](int(a), int(b)) == int(result)
        assert sign != "/" or int(a) % int(b) == 0
        assert {a, b} <= set(re.findall(r"\d+", made.question))


def test_words_are_spelled_and_counted_right() -> None:
    for made in made_by(spelling.letter_question):
        letters = made.answer.split(":")[0].split("-")
        if made.answer.endswith("letters."):
            assert f"has {len(letters)} letters" in made.answer
            assert "".join(letters) in made.question
        elif "occurs" in made.answer:
            letter = made.answer.split("the letter ")[1][0]
            count = letters.count(letter)
            times = {1: "once", 2: "twice"}.get(count, f"{count} times")
            assert made.answer.endswith(f"occurs {times}.")
    for made in made_by(spelling.spelling):
        if made.task == "spelling":
            assert made.answer.rstrip(".").replace("-", "") in made.question
        else:
            word, _, _, letters = made.answer.rstrip(".").split(" ")
            assert letters.replace("-", "") == word[::-1]


def test_lists_are_sorted() -> None:
    for made in made_by(spelling.sorting):
        result = made.answer.split(", ")
        if made.task == "sorting numbers":
            numbers = [int(text) for text in result]
            descending = "descending" in made.question or "largest to" in made.question
            assert numbers == sorted(numbers, reverse=descending)
        else:
            assert result == sorted(result)
        assert sorted(made.key.split(", ")) == sorted(result)


def test_json_is_json_with_the_fields_asked_for() -> None:
    for made in made_by(extraction.json_extraction):
        values = json.loads(made.answer)
        for field, value in values.items():
            assert field in made.question
            assert str(value) in made.question


def test_units_are_converted_right() -> None:
    known = {made.question: made.answer for made in made_by(units.unit_conversion, 5_000)}
    assert known["How many minutes are in an hour?"] == "1 hour is 60 minutes."
    assert known["Convert 3 kilometres to metres."] == "3 kilometres are 3000 metres."
    assert known["How many feet are 12 inches?"] == "12 inches are 1 foot."


def test_what_is_asked_for_later_was_told_before() -> None:
    source = random.Random(2)
    for _ in range(500):
        told, asked = memory.remembered(source)
        value = told.key.split(" ", 1)[1].split(" ")[-1]
        assert value in told.question
        assert value in asked.answer


@pytest.mark.parametrize("make", [conversation, lambda source: long_conversation(source, 20)])
def test_a_follow_up_comes_right_after_its_question(
    make: Callable[[random.Random], Conversation],
) -> None:
    source, num_follow_ups = random.Random(3), 0
    for _ in range(300):
        turns = make(source).turns
        assert turns
        for before, turn in itertools.pairwise(turns):
            if turn.task == "follow-up" and re.match(r"(?i)and |now |add ", turn.question):
                num_follow_ups += 1
                assert before.task == "follow-up"
                assert before.key == turn.key
        subjects = [turn.key.split()[0] for turn in turns if turn.task == "memory"]
        assert all(subjects.count(subject) == 2 for subject in subjects)
    assert num_follow_ups > 20


def test_a_broken_table_is_named() -> None:
    assert all(len(row) == 5 for row in read_columns("countries.txt", 5))
    with pytest.raises(ValueError, match=r"countries\.txt: 'France.*has 5 values; expected 4"):
        read_columns("countries.txt", 4)
    with pytest.raises(ValueError, match=r"definitions\.txt: .* lacks a question or an answer"):
        read_blocks("definitions.txt")
