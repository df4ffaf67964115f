"""Chains of two steps that explain the answer to a sum of three digits; a hundred chains for each."""

from __future__ import annotations

from functools import cache

import numpy as np

from experiments.tree_of_thoughts.problem import operands
from posteriori.config import ProblemConfig, RewardTerm
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.problems.automata import from_regex
from posteriori.problems.prompts import read_prompts
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt

CONTEXT = "Question: {x} = ? Answer:"
TERMS = (
    RewardTerm(target="{z}", context=CONTEXT),
    RewardTerm(target=". The answer is {y}.", context=CONTEXT + "{z}"),
)


def pattern(question: str) -> str:
    """All chains `` 3 - 1 = R, R + 2 = S`` with digits R and S; left sides are those of the question."""
    a, first, b, second, c = operands(question)
    chains = (f" {a} {first} {b} = {r}, {r} {second} {c} = [0-9]" for r in range(10))
    return "|".join(chains)


def chains(config: ProblemConfig, lm: LanguageModel) -> Problem:
    """p(Z | X) · p(Y | X, Z); prompts have the fields ``x`` (``3 - 1 + 2``) and ``y``."""
    words = [*(f" {digit}" for digit in range(10)), " +", " -", " =", ","]
    alphabet = np.array([lm.one_token(word, "Word of a step") for word in words])
    stop = lm.one_token(".", "Terminator")

    @cache
    def moves_about(question: str) -> LegalMoves:
        automaton = from_regex(pattern(question), words)
        return LegalMoves(alphabet, stop, config.min_tokens, config.max_tokens, *automaton)

    def moves(prompt: Prompt) -> LegalMoves:
        return moves_about(prompt.fields["x"])

    return Problem(
        config.name,
        read_prompts(config, config.prompts),
        ProductReward(TERMS, [lm] * len(TERMS), moves),
        lm,
        lambda prompt: lm.context(CONTEXT.replace("{x}", prompt.fields["x"])),
        moves,
    )
