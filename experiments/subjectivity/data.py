"""The two data sets: pocket's own generated reviews, and SUBJ (Pang & Lee 2004) as the paper ships it.

The base LM has been trained on labelled reviews of the generator; on intact ones every trained method is
at 100 %. So half of the words of each are replaced by words of other reviews: what is left of the text
says its class no longer for sure, and how to weigh the evidence is what can be learned.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from posteriori.data import Record, leaks, read, refuse_leaks, split
from posteriori.pocket.reviews import CLASSES, review

SIZES: Final = (10, 20, 50)
"""Labelled training items; nested."""
SUBJ_TEST: Final = 2000
SUBJ_TEST_SEED: Final = 0
SUBJ_LONGEST_CHARACTERS: Final = 130
"""Longer sentences, about half of them, are not drawn for testing, nor for training beyond the paper's own
few: pocket spells most words, and a step costs what its longest X costs."""


@dataclass(frozen=True)
class Item:
    """A sentence and its label, ``objective`` or ``subjective``."""

    text: str
    label: str


GARBLED_SHARE: Final = 0.5
"""Chance of each word of a generated review to be replaced."""
VOCABULARY_REVIEWS: Final = 2000
"""Reviews whose words are the replacements."""


def own_reviews(n: int, stream: str) -> list[Item]:
    """n generated reviews with the label of the class that wrote them; a stream gives one list."""
    rng = random.Random(f"subjectivity/{stream}")
    items = []
    for _ in range(n):
        label = rng.choice(CLASSES)
        items.append(Item(review(label, rng), label))
    return items


def garbled(items: Sequence[Item], stream: str) -> list[Item]:
    """The items with words replaced, punctuation but the full stop left out."""
    source = own_reviews(VOCABULARY_REVIEWS, "vocabulary")
    words = sorted({word for item in source for word in _words(item.text)})
    rng = random.Random(f"subjectivity/garbled/{stream}")

    def garble(text: str) -> str:
        kept = (rng.choice(words) if rng.random() < GARBLED_SHARE else w for w in _words(text))
        return " ".join(kept) + "."

    return [Item(garble(item.text), item.label) for item in items]


def _words(text: str) -> list[str]:
    return text.rstrip(".").replace(",", "").split()


def own_sets(seed: int, test: int) -> tuple[list[Item], list[Item]]:
    """(50 training items, test items) of a seed, garbled, without an item on both sides."""
    training = garbled(own_reviews(max(SIZES), f"train-{seed}"), f"train-{seed}")
    drawn = garbled(own_reviews(2 * test, f"test-{seed}"), f"test-{seed}")
    leaked = {i for i, _ in leaks([x.text for x in training], [x.text for x in drawn])}
    return training, [x for i, x in enumerate(drawn) if i not in leaked][:test]


def subj_split(directory: Path) -> tuple[list[Record], list[Record]]:
    """(training, test) parts of ``train.jsonl``; the paper's few-shot items are in training.

    Raises:
        UserError: the files are not there, or malformed.
    """
    few = read(directory / f"train.{max(SIZES)}.jsonl", "subj")
    known = {record.fields["x"] for record in few}
    records = read(directory / "train.jsonl", "subj")
    others = [record for record in records if record.fields["x"] not in known]
    training, test = split(others, SUBJ_TEST, SUBJ_TEST_SEED, lambda record: record.fields["x"])
    refuse_leaks([*few, *training], test, lambda record: record.fields["x"])
    return few + training, test


def subj_sets(directory: Path, seed: int, test: int) -> tuple[list[Item], list[Item]]:
    """(50 training items, test items): the paper's files for seed 0, drawn anew for other seeds.

    Args:
        directory: of the SUBJ files.
        seed: which few items are labelled, and which test items are asked.
        test: how many of them.
    """
    training, held_out = subj_split(directory)
    few = training[: max(SIZES)]
    if seed:
        few = random.Random(seed).sample(_short(training), max(SIZES))
    asked = random.Random(f"test-{seed}").sample(_short(held_out), test)
    return _items(few), _items(asked)


def _short(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if len(record.fields["x"]) <= SUBJ_LONGEST_CHARACTERS]


def _items(records: Sequence[Record]) -> list[Item]:
    return [Item(record.fields["x"], record.fields["y"]) for record in records]
