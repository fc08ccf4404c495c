"""Plain text without a chat template, so that the model can also continue a sentence."""

from __future__ import annotations

import random

from examples.demo_model.corpus.countries import COUNTRIES, Country
from examples.demo_model.corpus.definitions import definition_document
from examples.demo_model.corpus.exchange import choose
from examples.demo_model.corpus.facts import (
    animal_fact,
    calendar_fact,
    language_fact,
    science_fact,
    single_fact,
)
from examples.demo_model.corpus.identity import identity_document
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

_COUNTRY = (
    "The capital of {name} is {capital}.",
    "The capital of {name} is {capital}.",
    "The capital of {name} is {capital}.",
    "The capital city of {name} is {capital}.",
    "{capital} is the capital of {name}.",
    "{capital} is a city in {name}. It is the capital of the country.",
    "The government of {name} is in {capital}.",
    "{Name} {verb} in {continent}. The capital of {name} is {capital}.",
    "{Name} {verb} in {continent}.",
)

_TIMES = ("morning", "evening", "weekend")
_SPORTS = ("swimming", "hiking", "cycling", "fishing", "dancing")
_PLACES = ("garden", "forest", "park", "kitchen")


def _country_sentence(source: random.Random) -> str:
    country: Country = choose(source, COUNTRIES)
    pattern = choose(source, _COUNTRY)
    if source.random() < 0.2 and country.language:
        pattern += " The main language of {name} is {language}."
    if source.random() < 0.15 and country.currency:
        pattern += " The currency of {name} is the {currency}."
    plural = country.name.startswith("the ") and country.name.endswith("s")
    return pattern.format(
        name=country.name,
        Name=country.name[:1].upper() + country.name[1:],
        capital=country.capital,
        verb="are" if plural else "is",
        continent=country.continent,
        language=country.language,
        currency=country.currency,
    )


def _story(source: random.Random) -> str:
    name, other = source.sample(FIRST_NAMES, 2)
    animal, pet = choose(source, ANIMALS), choose(source, PET_NAMES)
    job = choose(source, tuple(job for job in JOBS if job[0] != "e"))
    sentences = [
        f"{name} is a {job} and lives in {choose(source, CITIES)}.",
        f"{name} has a {choose(source, COLOURS)} house and a {animal} called {pet}.",
        f"Every {choose(source, _TIMES)} {name} and {other} go {choose(source, _SPORTS)}.",
        f"The favourite food of {other} is {choose(source, FOODS)}.",
        f"The hobby of {other} is {choose(source, HOBBIES)}.",
        f"One day {pet} ran away, and {name} was very sad.",
        f"In the evening {other} found {pet} in the {choose(source, _PLACES)}, and everybody was happy.",
    ]
    first = source.randrange(2)
    return " ".join(sentences[first : first + source.randint(2, 7)])


def document(source: random.Random) -> str:
    """One to four sentences of plain text."""
    form = source.random()
    if form < 0.15:
        return _story(source)
    parts: list[str] = []
    for _ in range(choose(source, (1, 1, 2, 3))):
        kind = source.random()
        if kind < 0.45:
            parts.append(_country_sentence(source))
        elif kind < 0.75:
            parts.append(definition_document(source))
        elif kind < 0.82:
            parts.append(identity_document(source))
        else:
            maker = choose(source, (science_fact, language_fact, animal_fact, calendar_fact, single_fact))
            parts.append(maker(source).answer)
    return " ".join(parts)
