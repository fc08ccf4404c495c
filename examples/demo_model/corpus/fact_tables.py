"""The tables behind the facts."""

from __future__ import annotations

from examples.demo_model.corpus.tables import read_blocks

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    ("January", 31),
    ("February", "28 or 29"),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
)
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """ "a=b, c=d" -> (("a", "b"), ("c", "d"))."""
    return tuple(
        (left.strip(), right.strip()) for left, right in (item.split("=") for item in text.split(","))
    )


ELEMENTS = _pairs(
    """hydrogen=H, helium=He, lithium=Li, carbon=C, nitrogen=N, oxygen=O, fluorine=F, neon=Ne, sodium=Na,
    magnesium=Mg, aluminium=Al, silicon=Si, phosphorus=P, sulfur=S, chlorine=Cl, argon=Ar,
    potassium=K, calcium=Ca, titanium=Ti, chromium=Cr, iron=Fe, cobalt=Co, nickel=Ni, copper=Cu,
    zinc=Zn, silver=Ag, tin=Sn, iodine=I, platinum=Pt, gold=Au, mercury=Hg, lead=Pb, radium=Ra,
    uranium=U"""
)
OPPOSITES = _pairs(
    """hot=cold, big=small, tall=short, fast=slow, happy=sad, light=dark, up=down, left=right,
    open=closed, early=late, old=young, rich=poor, strong=weak, hard=soft, wet=dry, full=empty,
    clean=dirty, loud=quiet, near=far, high=low, wide=narrow, thick=thin, easy=difficult, good=bad,
    true=false, day=night, summer=winter, love=hate, begin=end, push=pull, buy=sell, win=lose,
    give=take, black=white, inside=outside, first=last, always=never, brave=cowardly, cheap=expensive,
    deep=shallow, sharp=blunt, smooth=rough, sweet=bitter, alive=dead, asleep=awake, before=after,
    above=below, many=few"""
)
PLURALS = _pairs(
    """cat=cats, dog=dogs, book=books, house=houses, car=cars, tree=trees, child=children, man=men,
    woman=women, foot=feet, tooth=teeth, mouse=mice, goose=geese, person=people, ox=oxen, sheep=sheep,
    fish=fish, deer=deer, leaf=leaves, wolf=wolves, knife=knives, life=lives, wife=wives, city=cities,
    baby=babies, story=stories, country=countries, family=families, box=boxes, fox=foxes, bus=buses,
    glass=glasses, church=churches, watch=watches, dish=dishes, potato=potatoes, tomato=tomatoes,
    hero=heroes, key=keys, day=days, boy=boys, bird=birds, flower=flowers, apple=apples,
    friend=friends, school=schools, cactus=cacti, loaf=loaves"""
)

# animal, what it does to be heard, its young, its legs, its kind
ANIMALS = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
    dog|barks|puppy|four|a mammal
    cat|meows|kitten|four|a mammal
    cow|moos|calf|four|a mammal
    horse|neighs|foal|four|a mammal
    sheep|bleats|lamb|four|a mammal
    pig|grunts|piglet|four|a mammal
    lion|roars|cub|four|a mammal
    bear|growls|cub|four|a mammal
    wolf|howls|pup|four|a mammal
    goat|bleats|kid|four|a mammal
    mouse|squeaks||four|a mammal
    elephant|trumpets|calf|four|a mammal
    rabbit|||four|a mammal
    tiger|roars|cub|four|a mammal
    fox|||four|a mammal
    camel|||four|a mammal
    duck|quacks|duckling|two|a bird
    hen|clucks|chick|two|a bird
    owl|hoots||two|a bird
    crow|caws||two|a bird
    goose|honks|gosling|two|a bird
    eagle|||two|a bird
    parrot|||two|a bird
    frog|croaks|tadpole|four|an amphibian
    snake|hisses||no|a reptile
    turtle|||four|a reptile
    lizard|||four|a reptile
    crocodile|||four|a reptile
    bee|buzzes||six|an insect
    ant|||six|an insect
    butterfly||caterpillar|six|an insect
    spider|||eight|an arachnid
    shark|||no|a fish
    salmon|||no|a fish
    whale|sings|calf|no|a mammal
    dolphin|||no|a mammal
    """.strip().splitlines()
)

COLOURS_OF = (
    ("the sky", "blue"),
    ("grass", "green"),
    ("snow", "white"),
    ("blood", "red"),
    ("a banana", "yellow"),
    ("a lemon", "yellow"),
    ("coal", "black"),
    ("milk", "white"),
    ("a carrot", "orange"),
    ("a tomato", "red"),
    ("chocolate", "brown"),
    ("an elephant", "grey"),
    ("the Sun", "yellow"),
    ("a strawberry", "red"),
    ("a frog", "green"),
    ("a polar bear", "white"),
    ("a flamingo", "pink"),
    ("the sea", "blue"),
    ("a pumpkin", "orange"),
    ("a leaf", "green"),
    ("a raven", "black"),
    ("a cherry", "red"),
)

SINGLE_FACTS = read_blocks("single_facts.txt")
