"""Problems small enough to enumerate, for tests of samplers."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import ExactPosterior, enumerate_posterior
from posteriori.problems import Problem, build_problem

KINDS: dict[str, dict[str, Any]] = {
    "tempered": {"kind": "tempered", "temperature": 0.5},
    "infilling": {"kind": "infilling", "prompts": [{"x": " the cat", "y": " on the mat"}]},
    "constrained": {"kind": "constrained", "constraint": {"contains": [" dog", " sat"]}},
}


def build(lm: LanguageModel, **settings: Any) -> Problem:
    """2 to 4 of four words after " the cat"; tempered at T = 1 unless told otherwise."""
    defaults: dict[str, Any] = {
        "name": "p",
        "kind": "tempered",
        "prompts": [{"x": " the cat"}],
        "alphabet": [" dog", " sat", " ran", " ate"],
        "stop": ".",
        "min_tokens": 2,
        "max_tokens": 4,
    }
    return build_problem(ProblemConfig.model_validate({**defaults, **settings}), lm)


def exact(problem: Problem) -> ExactPosterior:
    """The posterior of the first X."""
    prompt = problem.prompts[0]
    return enumerate_posterior(problem.name, prompt, problem.moves(prompt), problem.reward, 10_000)


def string_index(posterior: ExactPosterior) -> dict[tuple[int, ...], int]:
    """Which string a Z is."""
    return {tuple(posterior.tree.tokens(k)): k for k in range(posterior.count)}


def chi_square_p(posterior: ExactPosterior, tokens: list[list[int]]) -> float:
    """p-value of independent draws being from the posterior; rare strings are merged."""
    index = string_index(posterior)
    counts = np.zeros(posterior.count)
    for z in tokens:
        counts[index[tuple(z)]] += 1
    expected = len(tokens) * np.exp(posterior.log_sigma)
    common = expected >= 5
    seen, wanted = (np.append(x[common], x[~common].sum()) for x in (counts, expected))
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    return float(stats.chisquare(seen, wanted * len(tokens) / wanted.sum()).pvalue)
