"""The posterior predictive: from many chains Z to a distribution over answers Y with its errors.

Chain i has a weight wᵢ and a distribution pᵢ(y) over the K answers in question: p(y | x, zᵢ) under a
language model, or all its mass on the answer that was read from it. Then

    p̂(y) = Σᵢ w̃ᵢ pᵢ(y),      se(y)² = Σᵢ w̃ᵢ² (pᵢ(y) − p̂(y))²      (Owen 2013, eq. 9.9),

and the entropy of p̂ splits into what each chain leaves open, Σᵢ w̃ᵢ H(pᵢ), and the mutual information of
answer and chain, which is how far chains disagree: the epistemic part (Houlsby et al. 2011). Entropies are
plug-in values of the chains at hand. A chain without an answer is counted, and takes no part otherwise.

Three rules (paper, sections 3 and 4.3): ``mean`` over zᵢ ~ q, where Y is unknown; ``bayes``, which weights
by p(zᵢ | x)/q(zᵢ | x) and so does not depend on q in the limit; ``vote``, one vote a chain for its most
likely answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posteriori import metrics
from posteriori.config import RewardTerm
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.problems.reasoning import ANSWER
from posteriori.rewards import log_likelihood
from posteriori.seams import Prompt

FloatArray = NDArray[np.float64]

Rule = Literal["mean", "bayes", "vote"]

PRIOR = RewardTerm(target="{z}", context="{x}")
"""p(Z | X)."""


@dataclass(frozen=True, eq=False)
class Predictive:
    """p̂(y) over K answers; answers without mass among those read from chains do not occur.

    Attributes:
        answers: K of them, as given, or most probable first where they were read from the chains.
        probabilities: p̂, [K], sums to 1; empty if no chain has an answer.
        standard_errors: of each, [K].
        chains: N, those without an answer included.
        unanswered: chains without an answer.
        unanswered_share: their share of the weight.
        effective_chains: effective sample size of the weights of the others.
        entropy: H(p̂), nats; NaN if no chain has an answer, like the two below.
        within_entropy: Σ w̃ᵢ H(pᵢ).
        mutual_information: entropy − within_entropy, ≥ 0.
    """

    answers: tuple[str, ...]
    probabilities: FloatArray
    standard_errors: FloatArray
    chains: int
    unanswered: int
    unanswered_share: float
    effective_chains: float
    entropy: float
    within_entropy: float
    mutual_information: float

    @property
    def best(self) -> str | None:
        """The most probable answer, the first of equals; None if no chain has one."""
        return self.answers[int(self.probabilities.argmax())] if self.answers else None


def from_scores(
    answers: Sequence[str],
    log_p: ArrayLike,
    log_weights: ArrayLike | None = None,
    *,
    jointly: bool = False,
) -> Predictive:
    """Over listed answers, from log p(y | x, zᵢ).

    Args:
        answers: K of them, distinct.
        log_p: nats, [N, K]; a row without any mass is a chain without an answer.
        log_weights: [N]; None: equal.
        jointly: condition on the answer being a listed one, p(y) / Σ p(y′), as Bayes does: a chain that
            makes every listed answer improbable counts little. Else each chain decides among them by
            itself, whatever else it could have said.

    Raises:
        ValueError: shapes do not fit, NaN, or no weight at all.
    """
    scores = np.asarray(log_p, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(answers) or len(set(answers)) != len(answers):
        raise ValueError(
            f"log p of shape {scores.shape} for {len(answers)} answers, each listed once"
        )
    if np.isnan(scores).any():
        raise ValueError("a log-probability is NaN")
    weights = np.zeros(len(scores)) if log_weights is None else np.asarray(log_weights, np.float64)
    if weights.shape != (len(scores),):
        raise ValueError(f"log weights of shape {weights.shape} for {len(scores)} chains")
    listed = np.logaddexp.reduce(scores, axis=1)
    answered = listed > -np.inf
    normalised = scores[answered] - listed[answered, None]
    if jointly:
        weights = np.where(answered, weights + np.where(answered, listed, 0.0), weights)
    return _predictive(tuple(answers), normalised, weights, answered)


def from_answers(answers: Sequence[str | None], log_weights: ArrayLike | None = None) -> Predictive:
    """Over the answers that were read from the chains: votes, or weighted votes.

    Args:
        answers: of each chain, None where it has none.
        log_weights: [N]; None: equal.

    Raises:
        ValueError: no chains, or no weight at all.
    """
    weights = np.zeros(len(answers)) if log_weights is None else np.asarray(log_weights, np.float64)
    if weights.shape != (len(answers),):
        raise ValueError(f"log weights of shape {weights.shape} for {len(answers)} chains")
    given = [answer for answer in answers if answer is not None]
    names = tuple(dict.fromkeys(given))
    answered = np.array([answer is not None for answer in answers], dtype=np.bool_)
    log_p = np.full((len(given), len(names)), -np.inf)
    for row, answer in enumerate(given):
        log_p[row, names.index(answer)] = 0.0
    found = _predictive(names, log_p, weights, answered)
    order = np.argsort(-found.probabilities, kind="stable")
    return replace(
        found,
        answers=tuple(names[k] for k in order),
        probabilities=found.probabilities[order],
        standard_errors=found.standard_errors[order],
    )


def _predictive(
    answers: tuple[str, ...],
    log_p: FloatArray,
    log_weights: FloatArray,
    answered: NDArray[np.bool_],
) -> Predictive:
    """From normalised rows of the answered chains, [N′, K], and all N weights."""
    everyone = metrics.normalised_weights(log_weights)
    if not everyone.any():
        raise ValueError("every chain has weight 0")
    share = float(everyone[~answered].sum())
    missing = int((~answered).sum())
    if not everyone[answered].any():
        nothing, unknown = np.zeros(0), float("nan")
        return Predictive(
            (), nothing, nothing, len(everyone), missing, share, 0.0, unknown, unknown, unknown
        )
    weights = metrics.normalised_weights(log_weights[answered])
    p = np.exp(log_p)
    mean = weights @ p
    variances = (weights**2) @ (p - mean) ** 2
    entropy = float(_entropies(mean[None])[0])
    within = float(weights @ _entropies(p))
    return Predictive(
        answers=answers,
        probabilities=mean,
        standard_errors=np.sqrt(variances),
        chains=len(everyone),
        unanswered=missing,
        unanswered_share=share,
        effective_chains=metrics.effective_sample_size(log_weights[answered]),
        entropy=entropy,
        within_entropy=within,
        mutual_information=max(0.0, entropy - within),
    )


def _entropies(p: FloatArray) -> FloatArray:
    """H of each row, with 0 log 0 = 0; [N]."""
    entropies: FloatArray = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return entropies


def answer_scores(
    problem: Problem,
    lm: LanguageModel,
    prompt: Prompt,
    chains: Sequence[Sequence[int]],
    answers: Sequence[str],
    term: RewardTerm = ANSWER,
) -> FloatArray:
    """log p(y | x, zᵢ) of every chain and answer.

    Args:
        problem: names ⊤.
        lm: p, such as the frozen base LM or the one an M step has fitted.
        prompt: X; its ``y`` is not looked at.
        chains: Z's without ⊤, N of them.
        answers: what takes the place of {y}, K of them.
        term: templates of p(y | x, z).

    Returns:
        Nats, [N, K].
    """
    stop = problem.moves(prompt).stop
    columns = []
    for answer in answers:
        asked = replace(prompt, fields={**prompt.fields, "y": answer})
        columns.append(log_likelihood(term, lm, asked, chains, stop))
    return np.stack(columns, axis=1)


def predict(
    problem: Problem,
    lm: LanguageModel,
    prompt: Prompt,
    chains: Sequence[Sequence[int]],
    answers: Sequence[str],
    *,
    rule: Rule = "mean",
    log_q: ArrayLike | None = None,
    answer: RewardTerm = ANSWER,
    prior: RewardTerm = PRIOR,
) -> Predictive:
    """The posterior predictive of listed answers from chains drawn by q(z | x).

    Args:
        problem: what the chains are of.
        lm: p.
        prompt: X.
        chains: Z's without ⊤, N of them.
        answers: the possible Y.
        rule: see the module.
        log_q: log q(zᵢ | x), nats, [N]; needed by ``bayes``.
        answer, prior: templates of p(y | x, z) and p(z | x).

    Raises:
        ValueError: ``bayes`` without log q, or no chains.
    """
    scores = answer_scores(problem, lm, prompt, chains, answers, answer)
    if rule == "vote":
        return from_answers([answers[k] for k in scores.argmax(axis=1)])
    if rule == "mean":
        return from_scores(answers, scores)
    if log_q is None:
        raise ValueError("the Bayes average weights by p(z | x)/q(z | x): give log_q")
    log_prior = log_likelihood(prior, lm, prompt, chains, problem.moves(prompt).stop)
    return from_scores(answers, scores, log_prior - np.asarray(log_q), jointly=True)
