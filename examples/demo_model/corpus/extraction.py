"""Reading fields out of a sentence and writing them as JSON, or answering a question about a short text."""

from __future__ import annotations

import json
import random

from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.words import ANIMALS, CITIES, COLOURS, FIRST_NAMES, ITEMS, JOBS, PET_NAMES

_NAME_AGE = (
    "{name} is {age} years old.",
    "My name is {name} and I am {age}.",
    "{name} is {age}.",
    "This is {name}, who is {age} years old.",
    "I am {name}, {age} years old.",
)
_NAME_CITY = ("{name} lives in {city}.", "My name is {name} and I live in {city}.", "{name} is from {city}.")
_ALL = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, lives in {city}.",
    "My name is {name}, I am {age} and I live in {city}.",
)
_JOB = ("{name} works as a {job} in {city}.", "{name} is a {job} from {city}.")
_ORDER = ("I would like {count} {item}.", "Please send me {count} {item}.", "We need {count} {item}.")

_KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("name", "age"), _NAME_AGE),
    (("name", "age"), _NAME_AGE),
    (("name", "city"), _NAME_CITY),
    (("name", "age", "city"), _ALL),
    (("name", "job", "city"), _JOB),
    (("item", "count"), _ORDER),
)


def json_extraction(source: random.Random) -> Exchange:
    """'Extract name and age as JSON: ...'. Names, ages, cities and counts are drawn independently."""
    fields, sentences = choose(source, _KINDS)
    job = choose(source, tuple(job for job in JOBS if job[0] != "e"))
    values: dict[str, str | int] = {
        "name": choose(source, FIRST_NAMES),
        "age": source.randint(5, 95),
        "city": choose(source, CITIES),
        "job": job,
        "item": choose(source, ITEMS),
        "count": source.randint(2, 60),
    }
    sentence = choose(source, sentences).format(**values)
    listed = f"{', '.join(fields[:-1])} and {fields[-1]}"
    pattern = choose(
        source,
        (
            "Extract {f} as JSON: {s}",
            "Extract the {f} as JSON: {s}",
            "Extract {f} as JSON. Text: {s}",
            "Return JSON with {f}: {s}",
            "{s} Extract {f} as JSON.",
        ),
    )
    answer = json.dumps({field: values[field] for field in fields})
    key = " ".join(str(values[field]) for field in fields)
    return Exchange("JSON extraction", key, pattern.format(f=listed, s=sentence), answer)


def reading(source: random.Random) -> Exchange:
    """A short text and a question about it."""
    name, other = source.sample(FIRST_NAMES, 2)
    city, colour = choose(source, CITIES), choose(source, COLOURS)
    animal, pet = choose(source, ANIMALS), choose(source, PET_NAMES)
    text = (
        f"{name} lives in {city}. {name} has a {colour} bicycle and a {animal} called {pet}. "
        f"{other} is a friend of {name}."
    )
    question, answer = choose(
        source,
        (
            (f"Where does {name} live?", f"{name} lives in {city}."),
            (f"What colour is the bicycle of {name}?", f"The bicycle is {colour}."),
            (f"What is the name of the {animal}?", f"The {animal} is called {pet}."),
            (f"Who is a friend of {name}?", f"{other} is a friend of {name}."),
            (f"Which animal does {name} have?", f"{name} has a {animal}."),
        ),
    )
    return Exchange("reading", f"{name} {city} {pet}", f"{text} {question}", answer)
