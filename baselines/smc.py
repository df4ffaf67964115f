"""Sequential Monte Carlo as a baseline: base-LM proposals, a policy's flows as twists, a lookahead.

The filter itself is ``posteriori.smc``, which the service runs too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.draws import Budget, Draws
from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.lookahead import Lookahead
from posteriori.ngrams import fit_ngrams
from posteriori.problems import Problem
from posteriori.seams import Prompt
from posteriori.smc import FLOW, Twist, likelihood_twist
from posteriori.smc import sample as run_filters


def sample(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    particles: int | None = None,
    proposal: LanguageModel | None = None,
    twist: Twist = FLOW,
    ess_threshold: float = 0.5,
) -> Draws:
    """Samples of particle filters.

    Args:
        problem, prompt: what to sample.
        n: samples.
        seed: of the draws.
        particles: None: one filter of n particles, returned with their weights. K: n independent
            filters of K particles, one particle taken by weight from each.
        proposal: None: the problem's base LM.
        twist: see ``posteriori.smc``; the flow's of a base LM is R(s⊤) / p(⊤|s).
        ess_threshold: resample below this share.
    """
    found = run_filters(
        problem,
        prompt,
        proposal or problem.lm,
        particles=particles or n,
        runs=n if particles else 1,
        twist=twist,
        ess_threshold=ess_threshold,
        seed=seed,
    )
    budget = Budget(found.token_forwards, found.reward_evaluations)
    log_z = metrics.log_z_estimate(np.array([p.log_z for p in found.populations]))
    if not particles:
        (one,) = found.populations
        return Draws(one.tokens, one.log_q, one.log_reward, one.log_weights, budget, log_z)
    rng = np.random.default_rng([seed, 1])
    chosen = [int((p.log_weights + rng.gumbel(size=particles)).argmax()) for p in found.populations]
    taken = list(zip(found.populations, chosen, strict=True))
    return Draws(
        tokens=[population.tokens[k] for population, k in taken],
        log_q=np.full(n, np.nan),
        log_reward=np.array([population.log_reward[k] for population, k in taken]),
        log_weights=np.zeros(n),
        budget=budget,
        log_z=log_z,
    )


def looking_ahead(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    particles: int | None = None,
    exponent: float = 1.0,
    order: int = 1,
    draws: int = 256,
    ess_threshold: float = 0.5,
) -> Draws:
    """The plain particle filter, its proposals and weights told what each prefix promises.

    Args:
        problem, prompt, n, seed, particles, ess_threshold: as for :func:`sample`.
        exponent: of the likelihood in R, 1/T of a tempered posterior.
        order: actions that the lookahead's n-grams look back on, 1 or 2.
        draws: of the base LM without the constraint, for those n-grams; what they take is counted.

    Raises:
        UserError: the alphabet is too large for n-grams.
    """
    moves, context = problem.moves(prompt), problem.policy_ids(prompt)
    table, forwards = fit_ngrams(
        problem.lm, [context], moves, draws, seed, order=order, exponent=exponent
    )
    guided = moves.looking_ahead(Lookahead(table))
    found = sample(
        replace(problem, legal_moves=lambda prompt: guided),
        prompt,
        n,
        seed,
        particles=particles,
        twist=likelihood_twist(exponent),
        ess_threshold=ess_threshold,
    )
    return replace(found, budget=found.budget + Budget(token_forwards=forwards))
