"""The X's of a run whose posterior is small enough to enumerate, and a sampler's distance to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import (
    ExactPosterior,
    Fidelity,
    FloatArray,
    enumerate_posterior,
    exact_log_q,
    fidelity,
)
from posteriori.oracle.strings import StringTree
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.rewards import draw_marks
from posteriori.seams import Prompt

PROMPTS_PER_PROBLEM = 8
"""More X's of one problem would make a run's evaluation longer than its training."""


@dataclass(frozen=True, eq=False)
class Case:
    """One X with its exact posterior."""

    problem: Problem
    prompt: Prompt
    exact: ExactPosterior

    @property
    def held_out(self) -> bool:
        """Was this X kept out of training?"""
        return self.prompt.id not in self.problem.by_id

    @property
    def name(self) -> str:
        """``problem/prompt``, or the problem's name where it has one X."""
        many = len(self.problem.prompts) + len(self.problem.test_prompts) > 1
        return f"{self.problem.name}/{self.prompt.id}" if many else self.problem.name

    def log_q(self, lm: LanguageModel) -> FloatArray:
        """Exact log q(z⊤) of all strings under a base LM or policy; nats, [count]."""
        return exact_log_q(self.exact.tree, lm, self.problem.policy_ids(self.prompt))

    def fidelity(self, lm: LanguageModel) -> Fidelity:
        """Distance of a base LM or policy from the posterior."""
        return fidelity(self.exact, self.log_q(lm))

    @cached_property
    def marks(self) -> dict[str, NDArray[np.bool_]]:
        """Strings the reward treats specially, by name, [count]; see ``rewards.draw_marks``."""
        strings = [self.exact.tree.tokens(k) for k in range(self.exact.count)]
        return draw_marks(self.problem.reward, self.prompt, strings)


def enumerable(problems: Sequence[Problem], max_strings: int) -> list[tuple[Problem, Prompt]]:
    """The first trained and held-out X's of each problem with at most ``max_strings`` legal Z."""
    return [
        (problem, prompt)
        for problem in problems
        for prompts in (problem.prompts, problem.test_prompts)
        for prompt in prompts[:PROMPTS_PER_PROBLEM]
        if problem.moves(prompt).count() <= max_strings
    ]


def exact_cases(
    problems: Sequence[Problem], max_strings: int, directory: Path | None = None
) -> list[Case]:
    """Enumerate the posteriors of a run.

    Args:
        problems: of the run.
        max_strings: X's with more legal Z have no oracle.
        directory: where log R of all strings is kept between the processes of one run, a file for
            each version of the reward; None: nowhere. Delete it to have everything scored anew.
    """
    cases = []
    for problem, prompt in enumerable(problems, max_strings):
        moves = problem.moves(prompt)
        version = f"-r{problem.reward.version}" if problem.reward.version else ""
        place = [*problem.prompts, *problem.test_prompts].index(prompt)
        file = directory / f"{problem.name}-{place}{version}.npy" if directory else None
        if file is not None and file.exists():
            exact = ExactPosterior(StringTree.of(moves, max_strings), np.load(file))
        else:
            exact = enumerate_posterior(problem.name, prompt, moves, problem.reward, max_strings)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.with_suffix(".tmp").open("wb") as stream:
                    np.save(stream, exact.log_reward, allow_pickle=False)
                file.with_suffix(".tmp").rename(file)
        cases.append(Case(problem, prompt, exact))
    return cases


def evaluation_metrics(cases: Sequence[Case], lm: LanguageModel) -> dict[str, float]:
    """``tv/…``, ``kl/…``, ``ess/…`` and ``log_z_exact/…`` of a sampler, a row for each case.

    Where a reward marks strings, such as those with a clipped likelihood, q's mass on them too:
    ``clipped/…``, ``violating/…``, ``mislabelled/…``.
    """
    found = {}
    for case in cases:
        log_q = case.log_q(lm)
        row = fidelity(case.exact, log_q)
        for name, mark in case.marks.items():
            found[f"{name}/{case.name}"] = float(np.exp(log_q)[mark].sum())
        found[f"tv/{case.name}"] = row.total_variation
        found[f"kl/{case.name}"] = row.kl_posterior_q
        found[f"ess/{case.name}"] = row.ess_fraction
        found[f"log_z_exact/{case.name}"] = case.exact.log_z
    return found


def evaluator(
    problems: Sequence[Problem], max_strings: int, directory: Path | None = None
) -> Callable[[Policy, int], dict[str, float]] | None:
    """``evaluation_metrics`` of a policy, as the learner calls it, under the rewards in force.

    Posteriors are enumerated anew after every M step. None: no X is small enough.
    """
    if not enumerable(problems, max_strings):
        return None
    known: list[int] = []
    cases: list[Case] = []

    def evaluate(policy: Policy, step: int) -> dict[str, float]:
        versions = [problem.reward.version for problem in problems]
        if versions != known:
            cases[:] = exact_cases(problems, max_strings, directory)
            known[:] = versions
        return evaluation_metrics(cases, policy.language_model())

    return evaluate
