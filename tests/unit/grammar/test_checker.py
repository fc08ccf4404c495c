"""The process that grammars are tried out in: what ends it, and what comes after."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.errors import InvalidRequest
from engines.grammar.checker import GrammarChecker
from engines.grammar.limits import MAX_GRAMMAR_BYTES
from engines.grammar.notation import library_grammar
from engines.grammar.vocabulary import UnusableVocabulary, VocabularySource
from engines.request import Grammar, GrammarKind
from tests.support.grammars import reference_chain, regex, schema

SOUND = library_grammar(regex("[0-9]{3}"))


@pytest.fixture
def checker(golden: Path) -> Iterator[GrammarChecker]:
    checker = GrammarChecker(VocabularySource(golden / "mistral-mxfp4-ct", 320, 2))
    yield checker
    checker.close()


def process_id(checker: GrammarChecker) -> int:
    assert checker._process is not None
    return checker._process.pid


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        pytest.param(schema(reference_chain(3000)), "too deeply nested", id="stack"),
        pytest.param(
            Grammar(
                GrammarKind.LARK,
                "start: a0\n" + "".join(f'a{i}: "x" a{i + 1}\n' for i in range(6000)) + 'a6000: "y"',
            ),
            "too deeply nested",
            id="stack-lark",
        ),
        pytest.param(schema({"type": "integer", "multipleOf": 99_999_989}), "more than 2 s", id="time"),
        pytest.param(regex("(((a{1000}){1000}){1000})"), "too many expressions", id="expressions"),
        pytest.param(regex("(a|b|ab)*" * 300), "too many expressions", id="backtracking"),
        pytest.param(
            schema({"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}), "", id="properties"
        ),
    ],
)
def test_a_hostile_grammar_is_an_answer_and_the_next_one_is_checked(
    checker: GrammarChecker, grammar: Grammar, reason: str
) -> None:
    error = checker.check(library_grammar(grammar))
    assert error is not None
    assert reason in error
    assert checker.check(SOUND) is None


def test_one_process_serves_many_grammars(checker: GrammarChecker) -> None:
    assert checker.check(SOUND) is None
    first = process_id(checker)
    assert checker.check(library_grammar(regex("(a"))) is not None
    assert checker.check(library_grammar(schema({"type": "object"}))) is None
    assert process_id(checker) == first


def test_the_process_does_not_inherit_secrets(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NYBBLE_API_KEY", "a secret")
    assert checker.check(SOUND) is None
    environment = Path(f"/proc/{process_id(checker)}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"secret" not in environment


def test_a_killed_process_is_replaced(checker: GrammarChecker) -> None:
    assert checker.check(SOUND) is None
    os.kill(process_id(checker), signal.SIGKILL)
    assert checker._process is not None
    checker._process.wait()
    assert checker.check(SOUND) is None


def test_close_ends_a_check_and_the_process(checker: GrammarChecker) -> None:
    assert checker.check(SOUND) is None
    process = checker._process
    assert process is not None
    slow = library_grammar(schema({"type": "integer", "multipleOf": 99_999_989}))
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(checker.check(slow)))
    thread.start()
    deadline = time.monotonic() + 30
    while cpu_ticks(process.pid) < 20 and time.monotonic() < deadline:  # it is at work
        time.sleep(0.01)
    checker.close()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="closed"):
        checker.check(SOUND)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"type": "BPE"}}', "{" * 100_000, "\0"])
def test_a_broken_tokenizer_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    checker = GrammarChecker(VocabularySource(tmp_path, 320, 2))
    try:
        with pytest.raises(UnusableVocabulary, match=r"tokenizer\.json"):
            checker.check(SOUND)
    finally:
        checker.close()


def test_the_size_of_a_grammar_is_bounded() -> None:
    library_grammar(regex("a" * MAX_GRAMMAR_BYTES))
    with pytest.raises(InvalidRequest, match="131073 bytes"):
        library_grammar(regex("a" * (MAX_GRAMMAR_BYTES + 1)))


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "  \n"])
def test_a_text_that_is_no_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        library_grammar(regex(text))


def test_a_deeply_nested_schema_is_refused() -> None:
    text = '{"items":' * 5000 + "{}" + "}" * 5000
    with pytest.raises(InvalidRequest, match="cannot be used"):
        library_grammar(Grammar(GrammarKind.JSON_SCHEMA, text))


def test_options_of_the_library_cannot_be_smuggled_in() -> None:
    options = {"x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequest, match="x-guidance"):
        library_grammar(schema(options))
    assert json.loads(library_grammar(schema({})))
