"""The training text: an infinite, seeded stream of documents of five genres."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from posteriori.pocket.arithmetic import arithmetic
from posteriori.pocket.integers import numbers
from posteriori.pocket.reviews import reviews
from posteriori.pocket.stories import outline, story

Write = Callable[[random.Random], str]

GENRES: Final[dict[str, Write]] = {
    "story": story,
    "outline": outline,
    "arithmetic": arithmetic,
    "review": reviews,
    "number": numbers,
}

#: Share of documents of each genre; lengths differ, so that shares of tokens are about 48/2/30/12/8
#: %.
DOCUMENT_WEIGHTS: Final = {
    "story": 0.556,
    "outline": 0.02,
    "arithmetic": 0.14,
    "review": 0.093,
    "number": 0.191,
}


class Document(NamedTuple):
    """One text and the genre that wrote it."""

    genre: str
    text: str


def documents(seed: int, genre: str | None = None) -> Iterator[Document]:
    """Endless documents of one genre, or of all in their weights; a seed gives one stream."""
    rng = random.Random(seed)
    names = [genre] if genre else list(GENRES)
    weights = [DOCUMENT_WEIGHTS[name] for name in names]
    while True:
        name = rng.choices(names, weights)[0]
        yield Document(name, GENRES[name](rng))
