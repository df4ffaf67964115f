"""Gold Z's from particle filters of the base LM: draws of a posterior before any training.

Where a constraint binds late, a policy's own draws show it only what it does already. A filter of a few
dozen particles over moves with a lookahead finds Z's nearly as the posterior has them; they seed the
replay buffer, and log R decides what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from posteriori import metrics, smc
from posteriori.problems.gold import Gold
from posteriori.problems.problem import Problem


@dataclass(frozen=True)
class FilteredGold:
    """Draws for every training X.

    Attributes:
        draws: the policy's own tokens of Z's by id of X, as many as particles; resampling makes duplicates.
        log_z: log Ẑ of each filter by id of X, nats; Ẑ is unbiased.
        token_forwards: of the base LM.
        reward_evaluations: distinct Z's of an X that were scored.
    """

    draws: Gold
    log_z: dict[str, list[float]]
    token_forwards: int
    reward_evaluations: int


def filtered_gold(
    problem: Problem,
    *,
    filters: int = 1,
    particles: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    on_prompt: Callable[[int], object] = lambda done: None,
) -> FilteredGold:
    """The particles of independent filters of each training X, resampled by weight, all filters' together.

    Args:
        problem: whose posterior; a lookahead of its moves guides the particles.
        filters: of each X.
        particles: of each filter.
        temperature: T of the posterior; particles are weighed by p(s)^{1/T} h(s) on their way.
        seed: of everything.
        on_prompt: called with the number of X's done.

    Raises:
        RewardError: a reward broke its contract.
    """
    draws: Gold = {}
    log_z: dict[str, list[float]] = {}
    forwards = evaluations = 0
    for number, prompt in enumerate(problem.prompts):
        found = smc.sample(
            problem,
            prompt,
            problem.lm,
            particles=particles,
            runs=filters,
            twist=smc.likelihood_twist(1 / temperature),
            seed=seed + number,
        )
        moves = problem.moves(prompt)
        tokens = [z for population in found.populations for z in population.tokens]
        log_weights = np.concatenate([p.log_weights for p in found.populations])
        # All filters' particles together: one filter's own are right only as their number grows.
        kept = smc.systematic(
            metrics.normalised_weights(log_weights),
            np.random.default_rng([seed, number]).random(),
        )
        draws[prompt.id] = [moves.actions(tokens[k]) for k in kept]
        log_z[prompt.id] = [population.log_z for population in found.populations]
        forwards += found.token_forwards
        evaluations += found.reward_evaluations
        on_prompt(number + 1)
    return FilteredGold(draws, log_z, forwards, evaluations)
