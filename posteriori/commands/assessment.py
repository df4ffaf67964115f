"""How right the samples of a run are: exact distances where an oracle exists, weights everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from actors.weighted import WeightedSamples, draw
from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import Case
from posteriori.oracle.enumeration import Fidelity
from posteriori.problems import Problem
from posteriori.rewards import draw_marks
from posteriori.seams import Engine, Prompt

EXAMPLES = 5
WORST = 10


@dataclass(frozen=True)
class Example:
    """One sample with its numbers, nats."""

    text: str
    log_q: float
    log_reward: float
    log_weight: float


@dataclass(frozen=True)
class SampleSummary:
    """What n draws of one sampler say by themselves, without an oracle.

    Attributes:
        log_z, log_z_se: log of the mean weight, and its standard error by the delta method.
        ess_fraction: effective share of the draws.
        pareto_k: tail of the weights; above 0.7 the weighted answers are not to be trusted.
        unique_fraction: distinct draws / draws.
        marked: share of the draws that the reward treats specially; see ``rewards.draw_marks``.
    """

    n: int
    log_z: float
    log_z_se: float
    ess_fraction: float
    pareto_k: float
    unique_fraction: float
    examples: tuple[Example, ...]
    marked: dict[str, float]


@dataclass(frozen=True)
class Exact:
    """The enumerated posterior of one X and two samplers' distances from it."""

    strings: int
    effective_strings: float
    log_z: float
    base: Fidelity
    policy: Fidelity
    worst: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Assessment:
    """Everything about one X of a run: what its draws say, and the exact truth where it is known.

    ``held_out``: the policy was not trained on this X.
    """

    problem: str
    prompt: str
    held_out: bool
    fields: dict[str, str]
    base: SampleSummary
    policy: SampleSummary
    exact: Exact | None

    @property
    def name(self) -> str:
        return f"{self.problem}/{self.prompt}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def summarise(samples: WeightedSamples, problem: Problem, prompt: Prompt) -> SampleSummary:
    """Diagnostics of weighted draws."""
    estimate = metrics.log_z_estimate(samples.log_weights)
    return SampleSummary(
        n=len(samples),
        log_z=estimate.value,
        log_z_se=estimate.standard_error,
        ess_fraction=metrics.ess_fraction(samples.log_weights),
        pareto_k=metrics.pareto_k(samples.log_weights),
        unique_fraction=metrics.unique_fraction([tuple(z) for z in samples.tokens]),
        examples=tuple(
            Example(
                text=problem.text(samples.tokens[i]),
                log_q=float(samples.log_q[i]),
                log_reward=float(samples.log_reward[i]),
                log_weight=float(samples.log_weights[i]),
            )
            for i in range(min(EXAMPLES, len(samples)))
        ),
        marked={
            name: float(mark.mean())
            for name, mark in draw_marks(problem.reward, prompt, samples.tokens).items()
        },
    )


def _exact(case: Case, base: LanguageModel, policy: LanguageModel) -> Exact:
    fidelity = case.fidelity(policy)
    return Exact(
        strings=case.exact.count,
        effective_strings=float(np.exp(case.exact.entropy)),
        log_z=case.exact.log_z,
        base=case.fidelity(base),
        policy=fidelity,
        worst=tuple(
            {
                "text": case.problem.text(row.tokens),
                "sigma": float(np.exp(row.log_sigma)),
                "q": float(np.exp(row.log_q)),
                "contribution": row.contribution,
            }
            for row in fidelity.worst[:WORST]
        ),
    )


def assess(
    problems: Sequence[Problem],
    cases: Sequence[Case],
    engine: Engine,
    base: LanguageModel,
    policy: LanguageModel,
    *,
    adapter_version: int,
    draws: int,
    prompts_per_problem: int,
    seed: int,
) -> list[Assessment]:
    """Assess the first trained X's of every problem, and its first held-out ones.

    Args:
        problems: of the run.
        cases: its enumerated X's.
        engine: with ``adapter_version`` loaded.
        base, policy: the same two samplers as language models, for exact log q.
        adapter_version: the policy's version in the engine.
        draws: from each sampler for each X.
        prompts_per_problem: X's assessed of each of the two.
        seed: of the draws.
    """
    exact = {(case.problem.name, case.prompt.id): case for case in cases}

    def summary(problem: Problem, prompt: Prompt, version: int) -> SampleSummary:
        samples = draw(engine, problem, prompt, draws, adapter_version=version, seed=seed)
        return summarise(samples, problem, prompt)

    found = []
    for problem in problems:
        trained = problem.prompts[:prompts_per_problem]
        for prompt in (*trained, *problem.test_prompts[:prompts_per_problem]):
            case = exact.get((problem.name, prompt.id))
            found.append(
                Assessment(
                    problem=problem.name,
                    prompt=prompt.id,
                    held_out=prompt.id not in problem.by_id,
                    fields=dict(prompt.fields),
                    base=summary(problem, prompt, 0),
                    policy=summary(problem, prompt, adapter_version),
                    exact=_exact(case, base, policy) if case else None,
                )
            )
    return found


@dataclass(frozen=True)
class WeightCheck:
    """Do importance weights correct an under-trained policy?

    TV between estimated and exact marginals (first token and length, averaged), from the same draws
    with and without self-normalised weights.
    """

    problem: str
    n: int
    total_variation: float
    marginal_error_unweighted: float
    marginal_error_weighted: float


def check_weights(
    case: Case,
    engine: Engine,
    sampler: LanguageModel,
    *,
    adapter_version: int,
    draws: int,
    seed: int,
) -> WeightCheck:
    """Estimate the marginals of one posterior from draws of a sampler that is still far from it."""
    samples = draw(
        engine, case.problem, case.prompt, draws, adapter_version=adapter_version, seed=seed
    )
    moves = case.exact.tree.moves
    first = np.array([moves.columns[z[0]] if z else len(moves.alphabet) for z in samples.tokens])
    length = np.array([len(moves.actions(z)) for z in samples.tokens])  # the oracle counts these

    def error(log_weights: np.ndarray) -> float:
        errors = [
            metrics.marginal_error(
                metrics.weighted_marginal(values, log_weights, len(exact)).probabilities, exact
            )
            for values, exact in (
                (first, case.exact.first_token_marginal()),
                (length, case.exact.length_marginal()),
            )
        ]
        return float(np.mean(errors))

    return WeightCheck(
        problem=case.problem.name,
        n=draws,
        total_variation=case.fidelity(sampler).total_variation,
        marginal_error_unweighted=error(np.zeros(draws)),
        marginal_error_weighted=error(samples.log_weights),
    )
