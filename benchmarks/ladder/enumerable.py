"""Rows whose every Z is enumerated: exact divergences of any sampler with a log q."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ladder.ground import Ground, Known, Metrics, averaged
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import Case, exact_cases
from posteriori.oracle.enumeration import fidelity
from posteriori.problems import build_problems
from posteriori.problems.reasoning import ANSWER
from posteriori.rewards import ProductReward

ANSWER_CHAINS = 64

NUMBER = re.compile(r"\. The answer is -?\d+\.")
NUMBERS = tuple(f". The answer is {value}." for value in range(-4, 13))
"""Answers of sums and differences of digits up to 6; the right one and its near misses are among them."""


def ground(config: RunConfig, oracle: Path) -> Ground:
    """Enumerate the posteriors of a run; log R of all strings is kept below ``oracle``."""
    lm = LanguageModel.load(config.model)
    problems = build_problems(config, lm)
    cases = exact_cases(problems, config.oracle_max_strings, oracle)
    return Ground(
        config=config,
        lm=lm,
        problems=problems,
        known=[_known(case) for case in cases],
        measure=lambda sampler, seed: averaged(
            [(case.held_out, _measured(case, sampler, seed)) for case in cases]
        ),
    )


def _measured(case: Case, sampler: LanguageModel, seed: int) -> Metrics:
    answers = NUMBERS if NUMBER.fullmatch(case.prompt.fields.get("y", "")) else ()
    chained = accuracies(case, sampler, answers, seed) if answers else {}
    return distances(case, sampler) | chained


def distances(case: Case, sampler: LanguageModel) -> Metrics:
    """Exact divergences of one X, its length marginal and how much of σ is concentrated."""
    log_q = case.log_q(sampler)
    found = fidelity(case.exact, log_q)
    return {
        "total_variation": found.total_variation,
        "kl_posterior_q": found.kl_posterior_q,
        "kl_q_posterior": found.kl_q_posterior,
        "ess_fraction": found.ess_fraction,
        "length_error": found.length_error,
        "first_token_error": found.first_token_error,
        "strings": float(case.exact.count),
        "effective strings": float(np.exp(case.exact.entropy)),
        "log_z": case.exact.log_z,
    }


def _known(case: Case) -> Known:
    return Known(
        problem=case.problem,
        prompt=case.prompt,
        held_out=case.held_out,
        log_z=case.exact.log_z,
        lengths=case.exact.length_marginal(),
        exact=case.exact,
    )


def accuracies(case: Case, sampler: LanguageModel, answers: Sequence[str], seed: int) -> Metrics:
    """Is the answer right that most of the probability favours, averaged over chains of q and of σ?

    p̂(y | x) = mean over chains z of p(y | x, z), normalised over ``answers``; ``ANSWER_CHAINS`` of each.
    """
    problem, prompt = case.problem, case.prompt
    answer = ProductReward([ANSWER], [problem.lm], lambda _: problem.moves(prompt))
    log_q = case.log_q(sampler)
    uniform = np.random.default_rng(seed).random(ANSWER_CHAINS)
    found: Metrics = {}
    for name, log_p in (("", log_q), ("oracle ", case.exact.log_sigma)):
        cumulative = np.cumsum(np.exp(log_p))
        # The same uniform numbers for both: what differs is the distribution.
        chosen = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        distinct, counts = np.unique(chosen, return_counts=True)
        chains = [case.exact.tree.tokens(int(k)) for k in distinct]
        scores = np.stack(
            [
                [
                    score[-1]
                    for score in answer.log_reward(
                        replace(prompt, fields={**prompt.fields, "y": y}), chains
                    )
                ]
                for y in answers
            ]
        )
        answered = np.exp(scores - np.logaddexp.reduce(scores, axis=0))
        likely = answered @ counts / ANSWER_CHAINS
        right = answers.index(prompt.fields["y"])
        found[f"{name}accuracy"] = float(likely.argmax() == right)
        found[f"{name}confidence in the right answer"] = float(likely[right])
    found["accuracy gap"] = found["oracle accuracy"] - found["accuracy"]
    return found
