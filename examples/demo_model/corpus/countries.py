"""Countries: capital, continent, and for some of them the main language and the currency."""

from __future__ import annotations

from dataclasses import dataclass

from examples.demo_model.corpus.tables import read_columns


@dataclass(frozen=True, slots=True)
class Country:
    """One country; `language` and `currency` are empty where one word would not be fair."""

    name: str
    capital: str
    continent: str
    language: str
    currency: str


COUNTRIES = tuple(Country(*columns) for columns in read_columns("countries.txt", 5))
CONTINENTS = ("Europe", "Asia", "Africa", "North America", "South America", "Oceania")
