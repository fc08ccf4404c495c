"""Short definitions, and the many ways to ask for one."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.tables import read_columns

DEFINITIONS = read_columns("definitions.txt", 2)

_QUESTIONS = (
    "What is {term}?",
    "What is {term}?",
    "Explain {term}.",
    "Can you explain what {term} is?",
    "Define {term}.",
    "Tell me about {term}.",
    "What does {bare} mean?",
    "Please explain {term} to me.",
    "Could you tell me what {term} is?",
    "What do you know about {term}?",
    "Explain {term} in simple words.",
    "What exactly is {term}?",
    "I want to know what {term} is.",
    "Give me a definition of {term}.",
)

_DOCUMENTS = (
    "{Term} is {text}.",
    "{Term} is {text}.",
    "What is {term}? {Term} is {text}.",
    "By {term} we mean {text}.",
    "Definition of {term}: {text}.",
    "Here is a short definition. {Term} is {text}.",
)
_PLURAL_TERMS = frozenset({"bacteria", "the lungs"})


def capitalized(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def bare(term: str) -> str:
    """The term without its article."""
    first, _, rest = term.partition(" ")
    return rest if first in {"a", "an", "the"} and rest else term


def definition_sentence(term: str, text: str) -> str:
    """The definition as one sentence."""
    return f"{capitalized(term)} {'are' if term in _PLURAL_TERMS else 'is'} {text}."


def definition(source: random.Random) -> Exchange:
    """A question for the meaning of a term."""
    term, text = choose(source, DEFINITIONS)
    index = source.randrange(len(_QUESTIONS))
    question = _QUESTIONS[index].format(term=term, bare=bare(term))
    if term in _PLURAL_TERMS:
        question = question.replace("is " + term, "are " + term).replace(term + " is", term + " are")
        question = question.replace("does " + bare(term), "does the word " + bare(term))
    # a wording listed twice may be held out under one number and trained under the other: no test of anything
    exact = _QUESTIONS.count(_QUESTIONS[index]) == 1
    return Exchange("definition", f"{index}:{term}", question, definition_sentence(term, text), exact)


def definition_document(source: random.Random) -> str:
    """One sentence that defines a term."""
    term, text = choose(source, DEFINITIONS)
    pattern = choose(source, _DOCUMENTS)
    document = pattern.format(term=term, Term=capitalized(term), text=text)
    if term in _PLURAL_TERMS:
        document = document.replace(f"{capitalized(term)} is ", f"{capitalized(term)} are ")
        document = document.replace(f"What is {term}", f"What are {term}")
    return document
