"""Sequential Monte Carlo as a baseline: base-LM proposals, and a policy's flows as twists.

The filter itself is ``posteriori.smc``, which the service runs too.
"""

from __future__ import annotations

import numpy as np

from baselines.draws import Budget, Draws
from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.seams import Prompt
from posteriori.smc import FLOW, Twist
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
