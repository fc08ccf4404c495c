"""Facts: countries, planets, elements, opposites, plurals, animals, colours, days and months."""

from __future__ import annotations

import random

from examples.demo_model.corpus.countries import CONTINENTS, COUNTRIES
from examples.demo_model.corpus.exchange import Exchange, choose
from examples.demo_model.corpus.fact_tables import (
    ANIMALS,
    COLOURS_OF,
    DAYS,
    ELEMENTS,
    MONTHS,
    OPPOSITES,
    PLANETS,
    PLURALS,
    SINGLE_FACTS,
)  # fmt: skip

Pattern = tuple[str, str]

_CAPITAL: tuple[Pattern, ...] = (
    ("What is the capital of {name}?", "The capital of {name} is {capital}."),
    ("What is the capital of {name}?", "The capital of {name} is {capital}."),
    ("What is the capital city of {name}?", "The capital of {name} is {capital}."),
    ("Which city is the capital of {name}?", "The capital of {name} is {capital}."),
    ("Name the capital of {name}.", "The capital of {name} is {capital}."),
    ("Tell me the capital of {name}.", "The capital of {name} is {capital}."),
    ("Do you know the capital of {name}?", "Yes, the capital of {name} is {capital}."),
    ("The capital of {name} is", "The capital of {name} is {capital}."),
    ("Capital of {name}?", "The capital of {name} is {capital}."),
    ("{capital} is the capital of which country?", "{capital} is the capital of {name}."),
    ("Which country has the capital {capital}?", "{capital} is the capital of {name}."),
)
_CONTINENT: tuple[Pattern, ...] = (
    ("Which continent is {name} in?", "{Name} {verb} in {continent}."),
    ("On which continent is {name}?", "{Name} {verb} in {continent}."),
    ("Where is {name}?", "{Name} {verb} in {continent}."),
    ("Where is {capital}?", "{capital} is in {name}."),
    ("In which country is {capital}?", "{capital} is in {name}."),
)
_LANGUAGE: tuple[Pattern, ...] = (
    ("What language do people speak in {name}?", "The main language of {name} is {language}."),
    ("Which language is spoken in {name}?", "The main language of {name} is {language}."),
)
_CURRENCY: tuple[Pattern, ...] = (
    ("What is the currency of {name}?", "The currency of {name} is the {currency}."),
    ("What money do people use in {name}?", "The currency of {name} is the {currency}."),
)
_PLURAL_COUNTRIES = frozenset(
    {"the Netherlands", "the Philippines", "the United Arab Emirates", "the United States"}
)


def _fact(
    source: random.Random, task: str, item: str, patterns: tuple[Pattern, ...], **fields: str
) -> Exchange:
    index = source.randrange(len(patterns))
    question, answer = patterns[index]
    return Exchange(task, f"{question} {item}", question.format(**fields), answer.format(**fields))


def country_fact(source: random.Random) -> Exchange:
    """Capital, continent, language or currency of a country, or the country of a capital."""
    country = choose(source, COUNTRIES)
    fields = {
        "name": country.name, "Name": country.name[:1].upper() + country.name[1:], "capital": country.capital,
        "continent": country.continent, "language": country.language, "currency": country.currency,
        "verb": "are" if country.name in _PLURAL_COUNTRIES else "is",
    }  # fmt: skip
    form = source.random()
    if form < 0.15 and country.language:
        return _fact(source, "language", country.name, _LANGUAGE, **fields)
    if form < 0.27 and country.currency:
        return _fact(source, "currency", country.name, _CURRENCY, **fields)
    if form < 0.45:
        return _fact(source, "continent", country.name, _CONTINENT, **fields)
    return _fact(source, "capital", country.name, _CAPITAL, **fields)


def science_fact(source: random.Random) -> Exchange:
    """A planet's place or a chemical symbol."""
    if source.random() < 0.4:
        index = source.randrange(len(PLANETS))
        number = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")[index]
        patterns: tuple[Pattern, ...] = (
            ("Which planet is the {n} from the Sun?", "{p} is the {n} planet from the Sun."),
            ("What is the {n} planet of the solar system?", "{p} is the {n} planet from the Sun."),
            ("What number is {p} counted from the Sun?", "{p} is the {n} planet from the Sun."),
        )
        return _fact(source, "planet", PLANETS[index], patterns, n=number, p=PLANETS[index])
    name, symbol = choose(source, ELEMENTS)
    patterns = (
        ("What is the chemical symbol of {e}?", "The chemical symbol of {e} is {s}."),
        ("What is the symbol for {e}?", "The chemical symbol of {e} is {s}."),
        ("Which element has the symbol {s}?", "{s} is the chemical symbol of {e}."),
        ("What does {s} stand for in chemistry?", "{s} is the chemical symbol of {e}."),
    )
    return _fact(source, "chemical symbol", name, patterns, e=name, s=symbol)


def language_fact(source: random.Random) -> Exchange:
    """An opposite or a plural."""
    if source.random() < 0.5:
        first, second = choose(source, OPPOSITES)
        if source.random() < 0.5:
            first, second = second, first
        patterns: tuple[Pattern, ...] = (
            ("What is the opposite of {a}?", "The opposite of {a} is {b}."),
            ('What is the opposite of "{a}"?', "The opposite of {a} is {b}."),
            ("Give me the opposite of {a}.", "The opposite of {a} is {b}."),
            ("What is the antonym of {a}?", "The opposite of {a} is {b}."),
        )
        return _fact(source, "opposite", first, patterns, a=first, b=second)
    one, many = choose(source, PLURALS)
    patterns = (
        ("What is the plural of {a}?", "The plural of {a} is {b}."),
        ("What is the plural form of {a}?", "The plural of {a} is {b}."),
        ("What is the singular of {b}?", "The singular of {b} is {a}."),
        ("One {a}, two ...?", "One {a}, two {b}."),
    )
    return _fact(source, "plural", one, patterns, a=one, b=many)


def animal_fact(source: random.Random) -> Exchange:
    """An animal's sound, young, legs or kind, or the colour of a thing."""
    if source.random() < 0.3:
        thing, colour = choose(source, COLOURS_OF)
        patterns: tuple[Pattern, ...] = (
            ("What colour is {t}?", "{T} is {c}."),
            ("What is the colour of {t}?", "{T} is {c}."),
            ("What color is {t}?", "{T} is {c}."),
        )
        return _fact(source, "colour", thing, patterns, t=thing, T=thing[:1].upper() + thing[1:], c=colour)
    animal, sound, young, legs, kind = choose(source, ANIMALS)
    article = "an" if animal[0] in "aeiou" else "a"
    options: list[Pattern] = [
        ("How many legs does {x} {a} have?", "{X} {a} has {l} legs."),
        ("What kind of animal is {x} {a}?", "{X} {a} is {k}."),
    ]
    if sound:
        options += [
            ("What sound does {x} {a} make?", "{X} {a} {s}."),
            ("What does {x} {a} say?", "{X} {a} {s}."),
        ]
    if young:
        options.append(("What is a baby {a} called?", "A baby {a} is called a {y}."))
    fields = {
        "x": article,
        "X": article.capitalize(),
        "a": animal,
        "s": sound,
        "y": young,
        "l": legs,
        "k": kind,
    }
    return _fact(source, "animal", animal, tuple(options), **fields)


def calendar_fact(source: random.Random) -> Exchange:
    """Which day or month comes before or after which, and a month's number or length."""
    names, kind = (DAYS, "day") if source.random() < 0.5 else (tuple(name for name, _ in MONTHS), "month")
    index = source.randrange(len(names))
    fields = {
        "a": names[index],
        "after": names[(index + 1) % len(names)],
        "before": names[index - 1],
        "k": kind,
    }
    patterns: tuple[Pattern, ...] = (
        ("What {k} comes after {a}?", "{after} comes after {a}."),
        ("Which {k} is after {a}?", "{after} comes after {a}."),
        ("What {k} comes before {a}?", "{before} comes before {a}."),
        ("Which {k} is before {a}?", "{before} comes before {a}."),
    )
    if kind == "month":
        fields["days"] = str(MONTHS[index][1])
        patterns += (("How many days does {a} have?", "{a} has {days} days."),
                     ("How long is {a}?", "{a} has {days} days."))  # fmt: skip
    return _fact(source, "calendar", names[index], patterns, **fields)


def single_fact(source: random.Random) -> Exchange:
    """A fact of its own, in one of its phrasings."""
    questions, answers = choose(source, SINGLE_FACTS)
    question = choose(source, questions)
    return Exchange("single fact", question, question, answers[0])


def yes_no(source: random.Random) -> Exchange:
    """A statement to be judged, with the reason."""
    form = source.random()
    if form < 0.4:
        country = choose(source, COUNTRIES)
        city = country.capital if source.random() < 0.5 else choose(source, COUNTRIES).capital
        question = f"Is {city} the capital of {country.name}?"
        truth = f"the capital of {country.name} is {country.capital}."
        return Exchange(
            "yes or no", question, question, f"{'Yes' if city == country.capital else 'No'}, {truth}"
        )
    if form < 0.65:
        country = choose(source, COUNTRIES)
        place = country.continent if source.random() < 0.5 else choose(source, CONTINENTS)
        verb = "are" if country.name in _PLURAL_COUNTRIES else "is"
        question = f"{verb.capitalize()} {country.name} in {place}?"
        judged = "Yes" if place == country.continent else "No"
        return Exchange(
            "yes or no", question, question, f"{judged}, {country.name} {verb} in {country.continent}."
        )
    if form < 0.85:
        a, b = source.sample(range(100), 2)
        word = choose(source, ("larger", "smaller"))
        holds = (a > b) == (word == "larger")
        right = word if holds else {"larger": "smaller", "smaller": "larger"}[word]
        answer = f"{'Yes' if holds else 'No'}, {a} is {right} than {b}."
        return Exchange("yes or no", f"{a} {b}", f"Is {a} {word} than {b}?", answer)
    animal, _, _, _, kind = choose(source, ANIMALS)
    asked = kind if source.random() < 0.5 else choose(source, ANIMALS)[4]
    article = "an" if animal[0] in "aeiou" else "a"
    question = f"Is {article} {animal} {asked}?"
    return Exchange(
        "yes or no", question, question, f"{'Yes' if asked == kind else 'No'}, {article} {animal} is {kind}."
    )
