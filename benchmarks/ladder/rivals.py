"""What one would use instead of q, on the same problem and with the same budgets.

Trained rivals (SFT, PPO) get as many reward evaluations as q's training took. Samplers (SMC, MCMC) train
nothing and pay for every sample instead; they are run at several sizes, and q is placed among them by
``particle_equivalent`` and ``break_even``. Token forwards are those of the policy's base LM.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from baselines import mcmc
from baselines.trained import Trained
from baselines.trainers import PASSES, policy_gradient, resampled_pairs, sft_on
from benchmarks.ladder.constraint import log_probability, viability_filter
from benchmarks.ladder.ground import Ground, Known, Metrics, averaged
from posteriori import metrics, smc
from posteriori.lookahead import Lookahead
from posteriori.ngrams import fit_ngrams
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.problems import Problem
from posteriori.smc import likelihood_twist

PARTICLES = (4, 16, 64, 256)
CHAIN_STEPS = (4, 16, 64)
LOOKAHEAD_DRAWS = 2048
"""Of the base LM without the constraint, for bigrams."""

PPO_SLOWER = 5
"""PPO's rate is the learner's divided by this: at the learner's own, four epochs on each round led to TV two
times as large on `tempered`, and to a policy of a few strings on the long rows."""

DRAWS = 512
"""Samples of SMC and MCMC for each X."""

Rival = Callable[[Ground, int, bool], Metrics]
"""(row, seed, quick) → metrics."""


def base(ground: Ground, seed: int, quick: bool) -> Metrics:
    """The base LM over the legal moves: local masking, where there is a constraint."""
    return ground.measure(ground.lm, seed) | {"training trajectories": 0.0}


def local(ground: Ground, seed: int, quick: bool) -> Metrics:
    """Token-level tempering with the posterior's own temperature."""
    return ground.measure(ground.lm.at_temperature(ground.temperature), seed) | {
        "training trajectories": 0.0
    }


def sft(ground: Ground, seed: int, quick: bool) -> Metrics:
    """Maximum likelihood on resampled draws of the base LM: as many reward evaluations as q's training."""
    pairs, spent = resampled_pairs(ground.problems, ground.trajectories, seed)
    trained = sft_on(pairs, ground.problems, ground.config, seed, PASSES, learning_rate=None)
    return _measured(ground, trained, seed) | {
        "drawing forwards": float(spent.token_forwards),
        "training trajectories": float(spent.reward_evaluations),
        "training pairs": float(len(pairs)),
    }


def ppo(ground: Ground, seed: int, quick: bool) -> Metrics:
    """PPO whose optimum is the posterior (E_q[log R − log q]) within the reward evaluations of q's training."""
    rate = ground.config.learner.learning_rate / PPO_SLOWER
    trained = policy_gradient(
        ground.problems,
        ground.config,
        seed,
        estimator="ppo",
        target="posterior",
        learning_rate=rate,
    )
    return _measured(ground, trained, seed) | {
        "training trajectories": float(trained.budget.reward_evaluations)
    }


def _measured(ground: Ground, trained: Trained, seed: int) -> Metrics:
    return ground.measure(trained.language_model(), seed) | {
        "training forwards": float(trained.budget.token_forwards)
    }


def particle_filter(particles: int, ahead: bool = False) -> Rival:
    """SMC of the base LM with the plain twist p(s)^{1/T}: one sample of each of many independent filters.

    Its gap log Z − E log Ẑ is KL(q‖σ) of a filter with all its ancestry, at least that of its samples.

    Args:
        particles: K.
        ahead: moves and twist have a bigram lookahead, fitted as q's is.
    """

    def rival(ground: Ground, seed: int, quick: bool) -> Metrics:
        runs = 8 if quick else max(32, DRAWS // particles)
        problems, fitting = {problem.name: problem for problem in ground.problems}, 0
        if ahead:
            (problem,) = ground.problems
            problems[problem.name], fitting = looking_ahead(problem, 1 / ground.temperature, seed)

        def measured(known: Known) -> Metrics:
            filtered = smc.sample(
                problems[known.problem.name],
                known.prompt,
                ground.lm,
                particles=particles,
                runs=runs,
                twist=likelihood_twist(1 / ground.temperature),
                seed=seed,
            )
            log_z = metrics.mean_estimate(np.array([one.log_z for one in filtered.populations]))
            tokens = [one.pick(1, seed + k)[0] for k, one in enumerate(filtered.populations)]
            return _lengths(known, tokens) | {
                "log_z gap": known.log_z - log_z.value,
                "log_z gap error": log_z.standard_error,
                "forwards per sample": filtered.token_forwards / runs,
                "reward evaluations per sample": filtered.reward_evaluations / runs,
            }

        fit = {"training forwards": float(fitting)} if ahead else {}
        return _over_prompts(ground, measured) | fit

    return rival


def looking_ahead(problem: Problem, exponent: float, seed: int) -> tuple[Problem, int]:
    """The problem with a lookahead, fitted to draws for its training X's, and the tokens that this read."""
    moves = problem.moves(problem.prompts[0])
    contexts = [problem.policy_ids(prompt) for prompt in problem.prompts]
    table, read = fit_ngrams(problem.lm, contexts, moves, LOOKAHEAD_DRAWS, seed, exponent=exponent)
    guided = moves.looking_ahead(Lookahead(table))
    return replace(problem, legal_moves=lambda prompt: guided), read


def chains(steps: int) -> Rival:
    """Metropolis–Hastings from draws of the base LM: the last state after so many proposals."""

    def rival(ground: Ground, seed: int, quick: bool) -> Metrics:
        n = 16 if quick else DRAWS

        def measured(known: Known) -> Metrics:
            drawn = mcmc.sample(known.problem, known.prompt, n, seed, steps=steps)
            return _lengths(known, drawn.tokens) | {
                "mean log_reward - log_z": float(drawn.log_reward.mean()) - known.log_z,
                "forwards per sample": drawn.budget.token_forwards / n,
                "reward evaluations per sample": drawn.budget.reward_evaluations / n,
            }

        return _over_prompts(ground, measured)

    return rival


def _over_prompts(ground: Ground, measured: Callable[[Known], Metrics]) -> Metrics:
    return averaged([(known.held_out, measured(known)) for known in ground.known])


def _lengths(known: Known, tokens: Sequence[Sequence[int]]) -> Metrics:
    """Error of the length marginal, all that samples without a log q show, and that of exact draws."""
    size = len(known.lengths)
    counts = np.bincount([len(z) for z in tokens], minlength=size)[:size]
    p = known.lengths.clip(0.0, 1.0)  # sums of an oracle's probabilities: 1 but for rounding
    noise = np.sqrt(2 * p * (1 - p) / (np.pi * len(tokens)))
    return {
        "length_error": metrics.marginal_error(counts / counts.sum(), known.lengths),
        "length_error of exact draws": float(0.5 * noise.sum()),
    }


def viability(particles: int) -> Rival:
    """Particle filters that prune what can no longer be completed: the constraint row's own baseline."""

    def rival(ground: Ground, seed: int, quick: bool) -> Metrics:
        runs = 8 if quick else 64

        def measured(known: Known) -> Metrics:
            assert isinstance(known.exact, MarkovPosterior)
            log_z = viability_filter(known.exact, particles, runs, seed)
            relative = np.exp(log_z - known.log_z)
            return {
                "failed": float(np.isneginf(log_z).mean()),
                "mean Ẑ/Z": float(relative.mean()),
                "log P(c)": log_probability(known.exact),
                "forwards per sample": float(particles * known.exact.moves.max_tokens),
            }

        return _over_prompts(ground, measured)

    return rival


RIVALS: dict[str, Rival] = {
    "base": base,
    "local": local,
    "sft": sft,
    "ppo": ppo,
    **{f"smc-{k}": particle_filter(k) for k in PARTICLES},
    "lookahead-64": particle_filter(64, ahead=True),
    **{f"mcmc-{n}": chains(n) for n in CHAIN_STEPS},
    "viability-256": viability(256),
}


def particle_equivalent(gap_of_q: float, gaps: dict[int, float]) -> float | None:
    """K whose SMC has q's gap log Z − E log Ẑ, by interpolation of log gap in log K.

    A single draw of q has the gap KL(q‖σ), and so has the base LM with K = 1. None where no two sizes
    enclose q's.
    """
    known = sorted((k, gap) for k, gap in gaps.items() if gap > 0)
    for (k, gap), (larger, smaller) in itertools.pairwise(known):
        if smaller <= gap_of_q <= gap:
            share = np.log(gap / gap_of_q) / np.log(gap / smaller) if gap > smaller else 0.0
            return float(np.exp(np.log(k) + share * np.log(larger / k)))
    return None


def break_even(training_forwards: float, forwards_q: float, forwards_rival: float) -> float | None:
    """Samples after which q's training has paid for itself in token forwards; None: never."""
    saved = forwards_rival - forwards_q
    return training_forwards / saved if saved > 0 else None
