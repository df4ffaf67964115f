"""Sums of three digits reasoned about by a tree: first steps, each with the second steps that follow it.

Z is a forest of one or two first thoughts, each with one or two children, such as
`` 3 - 1 = 2 ( 2 + 2 = 3 ; 2 + 2 = 4 ;)``. Left sides are forced by the question and by the parent's
result, and siblings have ascending results, so that a tree is written in one way: what the policy
decides are results and branching.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.problems.automata import from_regex
from posteriori.problems.prompts import read_prompts
from posteriori.seams import Prompt
from posteriori.thoughts import Marks, TreeReward

RESULTS = "123456"
"""Results a step may have: few, so that every tree can be enumerated."""

QUESTION = re.compile(r"(\d) ([+-]) (\d) ([+-]) (\d)")


def operands(question: str) -> tuple[str, ...]:
    """``a ± b ± c`` taken apart, each part ready for a regular expression.

    Raises:
        UserError: it is no such question.
    """
    found = QUESTION.fullmatch(question)
    if found is None:
        raise UserError(f"{question!r} is no question about three digits.", "Write 3 - 1 + 2.")
    return tuple(re.escape(part) for part in found.groups())


def pattern(question: str) -> str:
    """Regular expression of all trees about a question ``a ± b ± c``; raises like ``operands``."""
    a, first, b, second, c = operands(question)

    def children(result: str) -> str:
        steps = {r: f" {result} {second} {c} = {r} ;" for r in RESULTS}
        return "|".join(
            steps[r] + _optional(steps[later] for later in RESULTS if later > r) for r in RESULTS
        )

    thoughts = {r: rf" {a} {first} {b} = {r} \(({children(r)})\)" for r in RESULTS}
    return "|".join(
        thoughts[r] + _optional(thoughts[later] for later in RESULTS if later > r) for r in RESULTS
    )


def _optional(choices: Iterable[str]) -> str:
    joined = "|".join(choices)
    return f"({joined})?" if joined else ""


def marks_of(lm: LanguageModel) -> Marks:
    """`` (`` before the children of a thought, ``)`` behind them, `` ;`` behind a leaf."""
    return Marks(*(lm.one_token(mark, "Mark of a tree") for mark in (" (", ")", " ;")))


def trees(config: ProblemConfig, lm: LanguageModel) -> Problem:
    """The trees that explain the right answer; prompts have the fields ``x`` (``3 - 1 + 2``) and ``y``."""
    words = [*(f" {digit}" for digit in range(10)), " +", " -", " =", " (", ")", " ;"]
    alphabet = [lm.one_token(word, "Word of a thought") for word in words]
    stop = lm.one_token(".", "Terminator")

    @cache
    def moves_about(question: str) -> LegalMoves:
        next_state, accepting = from_regex(pattern(question), words)
        return LegalMoves(
            np.asarray(alphabet), stop, config.min_tokens, config.max_tokens, next_state, accepting
        )

    def moves(prompt: Prompt) -> LegalMoves:
        return moves_about(prompt.fields["x"])

    reward = TreeReward(
        lm,
        marks_of(lm),
        moves,
        context="Question: {x} = ? Answer:",
        answer=" The answer is {y}.",
    )
    return Problem(
        config.name,
        read_prompts(config, config.prompts),
        reward,
        lm,
        lambda prompt: lm.context(f"Question: {prompt.fields['x']} = ? Answer:"),
        moves,
    )
