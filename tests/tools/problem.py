"""Likelihood of a whole Z, the parrot's words included."""

from __future__ import annotations

from posteriori.config import RewardTerm
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt
from tests.tools.parrot import parrot_moves


def parrot_problem(
    lm: LanguageModel, min_tokens: int, max_tokens: int, weight: float = 1.0
) -> Problem:
    """R = p(Z⊤ | " the")^weight."""
    moves = parrot_moves(lm, min_tokens, max_tokens)
    prompts = [Prompt("0", {"x": " the"})]
    reward = ProductReward([RewardTerm(weight=weight)], [lm], lambda prompt: moves)
    return Problem(
        "parrot", prompts, reward, lm, lambda p: lm.context(p.fields["x"]), lambda p: moves
    )
