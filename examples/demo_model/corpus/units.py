"""Unit conversion where both sides are whole numbers."""

from __future__ import annotations

import random

from examples.demo_model.corpus.exchange import Exchange, choose

_UNITS = (
    ("kilometre", "kilometres", "metres", 1000),
    ("metre", "metres", "centimetres", 100),
    ("centimetre", "centimetres", "millimetres", 10),
    ("kilogram", "kilograms", "grams", 1000),
    ("litre", "litres", "millilitres", 1000),
    ("tonne", "tonnes", "kilograms", 1000),
    ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60),
    ("day", "days", "hours", 24),
    ("week", "weeks", "days", 7),
    ("year", "years", "months", 12),
    ("foot", "feet", "inches", 12),
    ("yard", "yards", "feet", 3),
    ("pound", "pounds", "ounces", 16),
    ("dozen", "dozen", "pieces", 12),
    ("century", "centuries", "years", 100),
    ("decade", "decades", "years", 10),
    ("euro", "euros", "cents", 100),
    ("dollar", "dollars", "cents", 100),
    ("kilobyte", "kilobytes", "bytes", 1000),
)
UNIT_WORDS = tuple((one, many, small) for one, many, small, _ in _UNITS)

_SINGULAR = {"feet": "foot", "inches": "inch", "centuries": "century"}


def _named(number: int, plural: str) -> str:
    return f"{number} {_SINGULAR.get(plural, plural.removesuffix('s')) if number == 1 else plural}"


def unit_conversion(source: random.Random) -> Exchange:
    """From the larger unit to the smaller one, or back."""
    one, many, small, factor = choose(source, _UNITS)
    number = 1 if source.random() < 0.25 else source.randint(1, 12)
    big_side = _named(number, many) if many != "dozen" else f"{number} dozen"
    if number == 1:
        big_side = f"1 {one}"
    small_side = _named(number * factor, small)
    verb = "is" if number == 1 else "are"
    key = f"{many} {number}"
    if source.random() < 0.6:
        patterns = [
            f"How many {small} are in {big_side}?",
            f"How many {small} {verb} {big_side}?",
            f"Convert {big_side} to {small}.",
            f"{big_side} in {small}?",
        ]
        if number == 1:
            patterns.append(f"How many {small} are in {'an' if one == 'hour' else 'a'} {one}?")
        return Exchange(
            "unit conversion", "down " + key, choose(source, patterns), f"{big_side} {verb} {small_side}."
        )
    patterns = [
        f"How many {many} are {small_side}?",
        f"Convert {small_side} to {many}.",
        f"{small_side} in {many}?",
    ]
    return Exchange("unit conversion", "up " + key, choose(source, patterns), f"{small_side} are {big_side}.")


def temperature(source: random.Random) -> Exchange:
    """Celsius and Fahrenheit, in steps of five degrees Celsius so that both are whole."""
    celsius = 5 * source.randint(-2, 20)
    fahrenheit = celsius * 9 // 5 + 32
    if source.random() < 0.5:
        question = f"Convert {celsius} degrees Celsius to Fahrenheit."
        answer = f"{celsius} degrees Celsius are {fahrenheit} degrees Fahrenheit."
    else:
        question = f"Convert {fahrenheit} degrees Fahrenheit to Celsius."
        answer = f"{fahrenheit} degrees Fahrenheit are {celsius} degrees Celsius."
    return Exchange("temperature", question, question, answer)
