"""Word lists that several kinds of data draw from."""

from __future__ import annotations

from examples.demo_model.corpus.tables import read_words

WORDS = read_words("words.txt")
FIRST_NAMES = read_words("first_names.txt")
CITIES = read_words("cities.txt")

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "pink", "brown", "grey")
ANIMALS = ("dog", "cat", "horse", "rabbit", "parrot", "turtle", "goldfish", "hamster", "pony", "canary")
FOODS = ("pizza", "pasta", "rice", "soup", "salad", "bread", "cheese", "apple pie", "chocolate", "curry")
JOBS = (
    "teacher", "doctor", "nurse", "baker", "farmer", "driver", "singer", "writer", "painter", "engineer",
    "cook", "lawyer", "pilot", "student", "carpenter", "gardener",
)  # fmt: skip
HOBBIES = (
    "swimming", "reading", "painting", "chess", "football", "cooking", "dancing", "hiking", "cycling",
    "gardening", "photography", "music", "fishing", "tennis",
)  # fmt: skip
PET_NAMES = ("Rex", "Bella", "Milo", "Luna", "Charlie", "Daisy", "Rocky", "Coco", "Oreo", "Teddy", "Biscuit")
ITEMS = ("apples", "books", "pencils", "oranges", "cups", "coins", "stamps", "eggs", "shirts", "tickets")
