"""What needs no training: how large it must be to come as near, and what its samples then cost.

One size serves all X's, as for a user who cannot know better: the smallest whose law has a mean TV within the
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from baselines import importance, mcmc, smc
from benchmarks.instead.laws import Proposals, log_likelihoods, smallest
from benchmarks.instead.meter import Cost, Meter
from benchmarks.instead.verdict import Ground
from posteriori import decoding
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import exact_moves
from posteriori.problems import Problem
from posteriori.seams import Prompt
from posteriori.smc import FLOW, Twist, likelihood_twist

SIZED_ON = 24
"""Held-out X's whose exact laws decide K and the number of proposals."""

FILTERED_ON = 8
"""Held-out X's on which filters, which have no exact law, are simulated."""

PARTICLES_SIMULATED = 60_000
"""Over all filters of one size and X."""

PRICED_ON = 8
"""Held-out X's whose samples are drawn under the meter."""

LARGEST = 1000
"""Candidates, particles or proposals."""

INFILL_SHARES = (0.0, 0.3, 0.6)
TWISTS: Mapping[str, Twist] = {"flow": FLOW, "likelihood": likelihood_twist()}

Draw = Callable[[Problem, Prompt, int, int], object]
"""(problem, X, n, seed): draw n samples."""


@dataclass(frozen=True)
class Sampler:
    """A rival that trains nothing, at the size at which it is near enough.

    Attributes:
        size: candidates, particles or proposals.
        total_variation: mean over X's of the law of one sample; of a filter, less the noise of its estimate.
        draw: n independent samples of one X.
        worth: exact draws that all it holds is worth in mean squared error: the population of a filter,
            one state of an endless chain; None: it holds only its sample.
        note: which variant it is, chosen as the best for it.
    """

    name: str
    size: int
    total_variation: float
    draw: Draw
    worth: float | None
    note: str


def proposals_of(ground: Ground, count: int) -> list[Proposals]:
    """The base LM on the first ``count`` held-out X's."""
    return [
        Proposals(exact, exact_moves(exact.tree, ground.lm, ground.problem.policy_ids(prompt)))
        for exact, prompt in zip(ground.exact[:count], ground.prompts[:count], strict=True)
    ]


def importance_resampling(ground: Ground, bound: float) -> Sampler | None:
    """SIR with the smallest number of candidates."""
    every = proposals_of(ground, SIZED_ON)

    def distance(candidates: int) -> float:
        return float(np.mean([one.distance(one.resampled(candidates)) for one in every]))

    size = smallest(distance, bound, LARGEST)
    if size is None:
        return None

    def draw(problem: Problem, prompt: Prompt, n: int, seed: int) -> object:
        return importance.sir(problem, prompt, n, seed, candidates=size)

    return Sampler("sir", size, distance(size), draw, None, "of the base LM's draws")


def markov_chain(ground: Ground, bound: float) -> Sampler | None:
    """MCMC with the share of infills that needs the fewest proposals."""
    every = proposals_of(ground, SIZED_ON)
    found = []
    for share in INFILL_SHARES:
        kernels = [one.kernel(share) for one in every]
        pairs = list(zip(every, kernels, strict=True))
        curve = np.mean([one.chain_distances(kernel, LARGEST) for one, kernel in pairs], axis=0)
        enough = np.flatnonzero(curve <= bound)
        if len(enough):
            times = [one.autocorrelation_time(kernel) for one, kernel in pairs]
            found.append((int(enough[0]), share, float(curve[enough[0]]), float(np.mean(times))))
    if not found:
        return None
    size, infill_share, distance, time = min(found)

    def draw(problem: Problem, prompt: Prompt, n: int, seed: int) -> object:
        return mcmc.sample(problem, prompt, n, seed, steps=size, infill_share=infill_share)

    return Sampler("mcmc", size, distance, draw, 1 / time, f"{infill_share:g} of them infills")


def particle_filter(ground: Ground, bound: float, particles: int) -> Sampler | None:
    """SMC with the twist that needs the fewest particles; one particle by weight from each filter.

    Args:
        particles: simulated for each size and X.
    """
    every = proposals_of(ground, FILTERED_ON)
    found: list[tuple[int, str, float, float]] = []
    for name in TWISTS:
        twists = [
            one.flow
            if name == "flow"
            else one.likelihood(
                log_likelihoods(one.tree, ground.lm, ground.problem.policy_ids(prompt))
            )
            for one, prompt in zip(every, ground.prompts, strict=False)
        ]

        def simulated(size: int, twists: Sequence[np.ndarray] = twists) -> tuple[float, float]:
            rng = np.random.default_rng(0)
            rows = []
            for one, log_v in zip(every, twists, strict=True):
                weights = one.filtered(log_v, size, max(2, particles // size), rng)
                half = len(weights) // 2
                noise = 0.5 * one.distance_between(weights[:half], weights[half : 2 * half])
                rows.append((one.distance(weights.mean(axis=0)) - noise, one.worth(weights)))
            distance, worth = np.mean(rows, axis=0)
            return float(distance), float(worth)

        size = smallest(lambda k: simulated(k)[0], bound, LARGEST)
        if size is not None:
            found.append((size, name, *simulated(size)))
    if not found:
        return None
    size, name, distance, worth = min(found)

    def draw(problem: Problem, prompt: Prompt, n: int, seed: int) -> object:
        return smc.sample(problem, prompt, n, seed, particles=size, twist=TWISTS[name])

    return Sampler("smc", size, distance, draw, worth, f"twist {name}")


def policy_draw(policy: LanguageModel) -> Draw:
    """Samples of a trained policy."""

    def draw(problem: Problem, prompt: Prompt, n: int, seed: int) -> object:
        return decoding.sample(policy, problem.policy_ids(prompt), problem.moves(prompt), n, seed)

    return draw


def price(ground: Ground, draw: Draw, n: int) -> Cost:
    """Mean cost of a sample where n are asked for at once."""
    meter = Meter()
    problem = meter.problem(ground.problem)
    chosen = ground.prompts[:PRICED_ON]
    with meter.running(ground.lm.model):
        for seed, prompt in enumerate(chosen):
            draw(problem, prompt, n, seed)
    return meter.cost * (1 / (n * len(chosen)))
