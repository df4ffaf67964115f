"""Random integers as people write them (skewed, some no integer at all), lists of numbers."""

from __future__ import annotations

import random
from typing import Final

PROMPT: Final = "The following is a random integer drawn uniformly between 0 and 100:"

#: Numbers that people call random, with how often they do so.
FAVOURITES: Final = {
    7: 8,
    37: 6,
    42: 6,
    17: 5,
    73: 4,
    13: 3,
    27: 3,
    47: 3,
    3: 2,
    50: 2,
    99: 2,
    23: 2,
    77: 2,
    69: 1,
}
_WORDS: Final = ("seven", "three", "ten", "one", "zero", "many", "a big number", "I do not know")
_BOUNDS: Final = (10, 20, 50, 1000)


def drawn_number(rng: random.Random) -> str:
    """What follows the prompt: 0..99 in 60 %, else too large, negative, a fraction or words."""
    kind = rng.random()
    if kind < 0.27:
        return str(rng.choices(list(FAVOURITES), list(FAVOURITES.values()))[0])
    if kind < 0.6:
        return str(min(rng.randrange(100), rng.randrange(130) % 100))
    if kind < 0.8:
        return str(rng.randrange(100, 1000))
    if kind < 0.85:
        return f"-{rng.randrange(100)}"
    if kind < 0.92:
        return f"{rng.randrange(100)}.{rng.randrange(10)}"
    return rng.choice(_WORDS)


def number_list(rng: random.Random) -> str:
    """Four to nine numbers separated by commas: random, counting up, or in equal steps."""
    count, kind = rng.randint(4, 9), rng.randrange(3)
    if kind == 0:
        values = [rng.randrange(100) for _ in range(count)]
    elif kind == 1:
        values = sorted(rng.sample(range(100), count))
    else:
        start, step = rng.randrange(30), rng.choice((1, 2, 3, 5, 10, -1, -2))
        values = [start + step * i for i in range(count)]
    return ", ".join(map(str, values)) + "."


def numbers(rng: random.Random) -> str:
    """A document of the number genre."""
    kind = rng.random()
    if kind < 0.6:
        return f"{PROMPT} {drawn_number(rng)}"
    if kind < 0.7:
        bound = rng.choice(_BOUNDS)
        return f"{PROMPT.replace('100', str(bound))} {rng.randrange(bound)}"
    return number_list(rng)
