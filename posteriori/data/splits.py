"""Training and test items apart: splitting, and refusing a test item that training has seen.

Two texts are the same item if they are equal after :func:`normalised`. It happens: of four test files
that came with the paper's arithmetic task, three hold training items, one of them nothing else.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

from posteriori.data.records import Record
from posteriori.errors import UserError

Item = TypeVar("Item")

NAMED = 3
"""Leaked items spelt out in a message."""


def normalised(text: str) -> str:
    """Text for comparison: compatibility form, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def leaks(training: Sequence[str], test: Sequence[str]) -> list[tuple[int, int]]:
    """(test index, training index) of every test text that is also a training text."""
    first: dict[str, int] = {}
    for index, text in enumerate(training):
        first.setdefault(normalised(text), index)
    found = ((index, first.get(normalised(text))) for index, text in enumerate(test))
    return [(index, other) for index, other in found if other is not None]


def refuse_leaks(
    training: Sequence[Record], test: Sequence[Record], text: Callable[[Record], str]
) -> None:
    """Refuse test items found in training.

    Args:
        training, test: the two parts.
        text: what identifies an item, such as its X.

    Raises:
        UserError: says how many there are and names the first with both places.
    """
    pairs = leaks([text(record) for record in training], [text(record) for record in test])
    if not pairs:
        return
    named = "; ".join(
        f"{test[i].where} is {training[j].where}: {text(test[i])!r}" for i, j in pairs[:NAMED]
    )
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    raise UserError(
        f"{len(pairs)} of {len(test)} test items are found in training: {named}{more}.",
        "Remove them from one of the two; held-out figures would not be of new X.",
    )


def split(
    items: Sequence[Item], test: int, seed: int, text: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """(training, test) parts at random; items with the same normalised text stay together.

    Args:
        items: all of them.
        test: least number of test items; more only where the last one has duplicates.
        seed: of the choice.
        text: what identifies an item.

    Raises:
        UserError: nothing would be left to train on.
    """
    same: dict[str, list[Item]] = {}
    for item in items:
        same.setdefault(normalised(text(item)), []).append(item)
    groups = list(same.values())
    random.Random(seed).shuffle(groups)
    held_out: list[Item] = []
    while groups and len(held_out) < test:
        held_out += groups.pop()
    if not groups:
        raise UserError(
            f"{len(items)} items cannot give {test} for testing and any for training.",
            "Ask for fewer test items.",
        )
    chosen = {id(item) for item in held_out}
    return [item for item in items if id(item) not in chosen], held_out
