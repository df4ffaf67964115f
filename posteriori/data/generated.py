"""The project's own data sets, in the file formats of the paper's: sums, reviews, stories.

Every item comes from pocket's generator, with random streams of their own for training and test; an
item whose X has been written already, in training or test, is drawn again. So the files pass
``refuse_leaks``, and another seed gives other items. Pre-training uses other streams, but a short sum
that it has seen may well occur.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posteriori.data.formats import ROCSTORIES
from posteriori.data.splits import normalised
from posteriori.errors import UserError
from posteriori.pocket import arithmetic, reviews, stories

Row = dict[str, Any]
Write = Callable[[random.Random], Row]

TRAINED_OPERANDS = (3, 4)
TESTED_OPERANDS = (3, 4, 5)
DRAWS_PER_ITEM = 200
"""Give up on new items after this many draws for each: the generator has no more to say."""


def sum_row(rng: random.Random, operands: Sequence[int], rationale: bool) -> Row:
    """A sum of single digits; its rationale calls the calculator at every ``=``, results left out."""
    values, signs = arithmetic.question_operands(rng, rng.choice(list(operands)))
    answer = arithmetic.correct_answer(values, signs)
    row = {
        "str_query": f"Question: {arithmetic.expression(values, signs)} = ? Answer:",
        "num_sol": answer,
    }
    if rationale:
        left, steps = values[0], []
        for sign, right in zip(signs, values[1:], strict=True):
            steps.append(f"{left} {sign} {right} =")
            left = arithmetic.apply(left, sign, right)
        row["str_rationale"] = ", ".join(steps)
    return {**row, "str_sol": f". The answer is {answer}."}


def review_row(rng: random.Random) -> Row:
    """A review with the label of the class that wrote it."""
    label = rng.choice(reviews.CLASSES)
    text = reviews.review(label, rng)
    return {"text": text, "label": reviews.CLASSES.index(label), "label_text": label}


def story_row(rng: random.Random) -> Row:
    """A causal story of five sentences."""
    sentences = stories.story_sentences(rng)
    identity = f"{rng.getrandbits(64):016x}"
    title = " ".join(sentences[0].split()[:3]).rstrip(".")
    return dict(zip(ROCSTORIES, (identity, title, *sentences), strict=True))


def _x(row: Row) -> str:
    """What identifies an item: the X that the readers of its format make."""
    if "str_query" in row:
        return str(row["str_query"])
    if "text" in row:
        return str(row["text"])
    return " ".join(row[f"sentence{i}"] for i in (1, 2, 3))


def _distinct(write: Write, n: int, stream: str, seen: set[str]) -> Iterator[Row]:
    """n rows whose X is not in ``seen``, which they enter."""
    rng = random.Random(stream)
    for _ in range(n):
        for _ in range(DRAWS_PER_ITEM):
            row = write(rng)
            if normalised(_x(row)) not in seen:
                break
        else:
            raise UserError(
                f"The generator does not have {n} new items for {stream!r}.",
                "Ask for fewer, or for sums of more operands.",
            )
        seen.add(normalised(_x(row)))
        yield row


def _arithmetic(train: int, test: int, rationales: int, seed: int) -> dict[str, list[Row]]:
    seen: set[str] = set()

    def write(operands: Sequence[int], rationale: bool) -> Write:
        return lambda rng: sum_row(rng, operands, rationale)

    head = f"arithmetic/{seed}"
    files = {
        "train_with_rationale.json": (rationales, TRAINED_OPERANDS, True),
        "train_without_rationale.json": (train, TRAINED_OPERANDS, False),
        **{f"test_{k}_operands.json": (test, (k,), False) for k in TESTED_OPERANDS},
    }
    return {
        name: list(_distinct(write(operands, rationale), n, f"{head}/{name}", seen))
        for name, (n, operands, rationale) in files.items()
        if n
    }


def _train_and_test(write: Write, suffix: str) -> Callable[[int, int, int, int], Any]:
    def make(train: int, test: int, rationales: int, seed: int) -> dict[str, list[Row]]:
        seen: set[str] = set()
        return {
            f"{part}{suffix}": list(_distinct(write, n, f"{suffix}/{seed}/{part}", seen))
            for part, n in (("train", train), ("test", test))
        }

    return make


KINDS: dict[str, Callable[[int, int, int, int], dict[str, list[Row]]]] = {
    "arithmetic": _arithmetic,
    "reviews": _train_and_test(review_row, ".jsonl"),
    "stories": _train_and_test(story_row, ".csv"),
}
"""(train, test, rationales, seed) → rows by file name. Formats: arithmetic, subj, rocstories."""


def write_data(
    kind: str, out: Path, *, train: int, test: int, rationales: int, seed: int
) -> dict[str, int]:
    """Write the files of a data set.

    Args:
        kind: a key of ``KINDS``.
        out: directory.
        train: training items, those with a rationale not counted.
        test: test items in each test file.
        rationales: sums with a rationale, in a file of their own.
        seed: of everything.

    Returns:
        Items by file name.

    Raises:
        UserError: unknown kind, or more items than the generator has.
    """
    if kind not in KINDS:
        raise UserError(f"No data set {kind!r}.", f"Choose among {', '.join(KINDS)}.")
    files = KINDS[kind](train, test, rationales, seed)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (out / name).write_text(_text(name, rows), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def _text(name: str, rows: Sequence[Row]) -> str:
    if name.endswith(".json"):
        return json.dumps(rows, indent=4, ensure_ascii=False) + "\n"
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stream = io.StringIO()
    table = csv.DictWriter(stream, ROCSTORIES, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return stream.getvalue()
