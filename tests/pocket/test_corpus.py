"""The generator: a seed gives one text, sums are wrong as often as stated, formats hold."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from posteriori.pocket.arithmetic import (
    EASY_STEP,
    HARD_STEP,
    correct_answer,
    expression,
    question_operands,
    rationale,
)
from posteriori.pocket.corpus import GENRES, documents
from posteriori.pocket.integers import PROMPT
from posteriori.pocket.judge import judge


def test_the_stream_is_a_function_of_its_seed() -> None:
    first, again, other = (list(islice(documents(seed), 300)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("genre", GENRES)
def test_one_genre_on_its_own(genre: str) -> None:
    texts = list(islice(documents(1, genre), 200))
    assert {document.genre for document in texts} == {genre}
    assert all(d.text == d.text.strip() and "  " not in d.text for d in texts)
    assert all(d.text.isascii() for d in texts)


def test_outlines_contain_stories() -> None:
    for document in islice(documents(2, "outline"), 50):
        parts = re.fullmatch("Beginning: (.*)\nMiddle: (.*)\nEnding: (.*)", document.text)
        assert parts is not None
        assert judge(" ".join(parts.groups()))


def test_the_paper_s_example() -> None:
    assert expression([6, 0, 4, 8], ["-", "-", "-"]) == "6 - 0 - 4 - 8"
    assert correct_answer([6, 0, 4, 8], ["-", "-", "-"]) == -6


def test_steps_are_right_as_often_as_stated() -> None:
    rng = random.Random(0)
    right = {True: 0, False: 0}
    count = {True: 0, False: 0}
    for _ in range(4000):
        operands, signs = question_operands(rng)
        text, _ = rationale("chain", operands, signs, rng)
        for left, sign, value, result in re.findall(r"(-?\d+) ([+-]) (\d) = (-?\d+)", text):
            easy = 0 <= int(left) <= 9
            count[easy] += 1
            right[easy] += correct_answer([int(left), int(value)], [sign]) == int(result)
    assert right[True] / count[True] == pytest.approx(EASY_STEP, abs=0.02)
    assert right[False] / count[False] == pytest.approx(HARD_STEP, abs=0.02)


def test_tool_rationales_leave_results_to_the_tool() -> None:
    text, _ = rationale("tool", [6, 0, 4, 8], ["-", "-", "-"], random.Random(0))
    assert text == " 6 - 0 =, 6 - 4 =, 2 - 8 =."


def test_about_six_random_integers_in_ten_are_valid() -> None:
    texts = [d.text for d in islice(documents(3, "number"), 5000)]
    drawn = [text.removeprefix(PROMPT + " ") for text in texts if text.startswith(PROMPT)]
    valid = sum(text in {str(i) for i in range(100)} for text in drawn)
    assert 0.55 < valid / len(drawn) < 0.65
