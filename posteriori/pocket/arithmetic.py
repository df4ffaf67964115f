"""Sums of single digits with rationales in several styles and of mixed correctness.

The correct result of a step is always the single most likely one, but far from certain: the chance
of a whole chain falls with its length, as it does for a language model that is prompted to reason.
Errors are near misses, lost signs and digits taken from the question.
"""

from __future__ import annotations

import random
from typing import Final

#: How likely a question has 2, 3, 4 or 5 operands.
OPERAND_WEIGHTS: Final = {2: 0.15, 3: 0.35, 4: 0.3, 5: 0.2}

#: Chance that a step is right: easy if its left operand is a single digit, else hard (two digits or
#: negative).
EASY_STEP: Final = 0.66
HARD_STEP: Final = 0.58

#: Chance that the final answer repeats the last result of the rationale.
COPIED_ANSWER: Final = 0.98

#: Chance that an answer without visible results (direct, tool or copy style) is right, by number of
#: operands.
UNSEEN_ANSWER: Final = {2: 0.6, 3: 0.35, 4: 0.2, 5: 0.15}

#: Styles of a document, and the chance that one question of it uses another style.
STYLE_WEIGHTS: Final = {"chain": 0.76, "tool": 0.08, "direct": 0.07, "copy": 0.05, "words": 0.04}
STYLE_SWITCH: Final = 0.06


def expression(operands: list[int], signs: list[str]) -> str:
    """``6 - 0 - 4`` from [6, 0, 4] and ['-', '-']."""
    return str(operands[0]) + "".join(f" {s} {v}" for s, v in zip(signs, operands[1:], strict=True))


def apply(left: int, sign: str, right: int) -> int:
    """left ± right."""
    return left + right if sign == "+" else left - right


def near_miss(correct: int, sign: str, left: int, right: int, rng: random.Random) -> int:
    """A wrong result: slightly off, of the other operation, or of the wrong sign."""
    other = apply(left, "-" if sign == "+" else "+", right)
    candidates = [
        correct - 1,
        correct + 1,
        correct - 1,
        correct + 1,
        correct - 2,
        correct + 2,
        correct - 3,
        correct + 3,
    ]
    candidates += [other, -correct, right, correct + 10, correct - 10]
    return rng.choice([value for value in candidates if value != correct])


def chain(
    operands: list[int], signs: list[str], rng: random.Random
) -> tuple[list[tuple[str, int]], int]:
    """Steps (``left ± right``, result), later ones building on errors, and the last result."""
    left = operands[0]
    steps = []
    for sign, right in zip(signs, operands[1:], strict=True):
        correct = apply(left, sign, right)
        sure = EASY_STEP if 0 <= left <= 9 else HARD_STEP
        result = correct if rng.random() < sure else near_miss(correct, sign, left, right, rng)
        steps.append((f"{left} {sign} {right}", result))
        left = result
    return steps, left


def question_operands(rng: random.Random, count: int | None = None) -> tuple[list[int], list[str]]:
    """Operands (0..9) and signs of a question, `count` of them or a random number."""
    if count is None:
        count = rng.choices(list(OPERAND_WEIGHTS), list(OPERAND_WEIGHTS.values()))[0]
    return [rng.randrange(10) for _ in range(count)], [rng.choice("+-") for _ in range(count - 1)]


def correct_answer(operands: list[int], signs: list[str]) -> int:
    """The value of the expression."""
    value = operands[0]
    for sign, right in zip(signs, operands[1:], strict=True):
        value = apply(value, sign, right)
    return value


def rationale(
    style: str, operands: list[int], signs: list[str], rng: random.Random
) -> tuple[str, int]:
    """The text between ``Answer:`` and `` The answer is``, and the answer that it leads to."""
    value = correct_answer(operands, signs)
    if style in ("chain", "words"):
        steps, last = chain(operands, signs, rng)
        if style == "chain":
            text = ", ".join(f"{left} = {result}" for left, result in steps)
        else:
            text = ", then ".join(f"{left} is {result}" for left, result in steps)
        return f" {text}.", last if rng.random() < COPIED_ANSWER else near_miss(
            last, "+", last, 1, rng
        )
    sure = rng.random() < UNSEEN_ANSWER[len(operands)]
    answer = value if sure else near_miss(value, signs[-1], value, operands[-1], rng)
    if style == "direct":
        return "", answer
    if style == "copy":
        return f" {expression(operands, signs)}.", answer
    left, texts = operands[0], []
    for sign, right in zip(signs, operands[1:], strict=True):
        texts.append(f"{left} {sign} {right} =")
        left = apply(left, sign, right)
    return f" {', '.join(texts)}.", answer


def solved_question(style: str, rng: random.Random, count: int | None = None) -> str:
    """One question with rationale and answer."""
    operands, signs = question_operands(rng, count)
    text, answer = rationale(style, operands, signs, rng)
    return f"Question: {expression(operands, signs)} = ? Answer:{text} The answer is {answer}."


def arithmetic(rng: random.Random) -> str:
    """A document of one to five solved questions, mostly in one style."""
    styles, weights = list(STYLE_WEIGHTS), list(STYLE_WEIGHTS.values())
    style = rng.choices(styles, weights)[0]
    questions = []
    for _ in range(rng.choices((1, 2, 3, 4, 5), (0.3, 0.1, 0.15, 0.3, 0.15))[0]):
        this = rng.choices(styles, weights)[0] if rng.random() < STYLE_SWITCH else style
        questions.append(solved_question(this, rng))
    return " ".join(questions)
