"""Likelihoods the slow way: one plain Hugging Face forward for each string."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import ExactPosterior, enumerate_posterior
from posteriori.problems import Problem, build_problem

DEFAULTS: dict[str, Any] = {
    "name": "p",
    "prompts": [{"x": " the big", "y": " then the bird ate."}],
    "alphabet": [" cat", " ran", " slept"],
    "stop": ".",
    "max_tokens": 3,
}


def build(lm: LanguageModel, **settings: Any) -> Problem:
    """A problem on the tiny model."""
    return build_problem(ProblemConfig.model_validate({**DEFAULTS, **settings}), lm)


def exact(problem: Problem, prompt: int = 0) -> ExactPosterior:
    """The enumerated posterior of one X."""
    x = problem.prompts[prompt]
    return enumerate_posterior("p", x, problem.moves(x), problem.reward, 1000)


class Naive:
    """log p of texts, token by token, cached."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.tokens = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, context: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            logits = self.lm.model(torch.tensor([context + target])).logits[0].double()
        log_p = torch.log_softmax(logits, dim=-1).numpy()
        return np.array([log_p[len(context) + k - 1, token] for k, token in enumerate(target)])

    def __call__(self, context: list[int], target: list[int]) -> float:
        return float(self.tokens(tuple(context), tuple(target)).sum())
