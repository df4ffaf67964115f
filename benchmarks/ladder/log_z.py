"""How often, and how tightly, the two-sided interval for log Z holds the exact value."""

from __future__ import annotations

import numpy as np

from benchmarks.ladder.ground import Metrics
from benchmarks.ladder.markov import posterior
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel
from posteriori.log_z_bounds import log_z_interval, mean_log_z_interval
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable
from posteriori.problems import build_problems

TRIALS = 200
PARTICLES = 512
POSTERIOR_DRAWS = 40
"""Blocks of ``PARTICLES``: 20,480 draws of the sampler and 40 of the posterior in a trial."""


def exact_draws_above(
    config: RunConfig, reward_lm: str, seed: int, trials: int = TRIALS
) -> Metrics:
    """Intervals of a tempered Markov posterior: token-tempered draws below, exact draws above.

    Every trial has draws of its own. The sampler is far from σ (its ESS fraction is among the metrics):
    a trained policy needs fewer draws for the same width.
    """
    lm = LanguageModel.load(config.model)
    (problem,) = build_problems(config, lm)
    table = MarkovTable.from_model(LanguageModel.load(reward_lm).model)
    exact = posterior(config, problem, problem.prompts[0], table)
    sampler = exact.local_sampler(config.problems[0].temperature)

    def log_weights(strings: list[list[int]]) -> np.ndarray:
        return exact.log_reward(strings) - exact.log_q(sampler, strings)

    covered, widths = 0, []
    for trial in range(trials):
        first = (seed * trials + trial) * 2
        below = log_weights(exact.sample(PARTICLES * POSTERIOR_DRAWS, first, sampler))
        above = log_weights(exact.sample(POSTERIOR_DRAWS, first + 1))
        interval = log_z_interval(below, above, PARTICLES)
        covered += interval.covers(exact.log_z)
        widths.append(interval.half_width)
    return {
        "coverage": covered / trials,
        "trials": float(trials),
        "half_width": float(np.mean(widths)),
        "widest half_width": float(np.max(widths)),
        "ess_fraction of the sampler": exact.ess_fraction(sampler),
    }


def joint_draws_above(reward_lm: str, seed: int, trials: int = TRIALS) -> Metrics:
    """Intervals of the mean log Z of infilling posteriors whose Y's are drawn with Z: no oracle above.

    Eight X's a trial; (Z, Y) ~ p(· | X), Z of eight tokens and Y of three; the sampler is the prior
    p(Z | X). The exact log Z(X, Y) is used for the verdict alone.
    """
    from posteriori.moves import LegalMoves

    lm = LanguageModel.load(reward_lm)
    table = MarkovTable.from_model(lm.model)
    words = np.array([i for i in range(lm.vocabulary_size) if i not in lm.special_ids])
    length, suffix, prompts, blocks, particles = 8, 3, 8, 4, 2048
    moves = LegalMoves.free(words, int(lm.tokenizer.eos_token_id), length, length)
    rng = np.random.default_rng(seed)
    covered, widths = 0, []
    for _ in range(trials):
        below, above, truth = [], [], []
        while len(truth) < prompts:
            x = rng.choice(words, table.window)
            (joint,) = table.sample(x[None], length + suffix, int(rng.integers(2**62)))
            if not np.isin(joint, words).all():
                continue  # the LM stopped: not a Z of this length
            z, y = joint[:length].tolist(), joint[length:].tolist()
            exact = MarkovPosterior.infilling(table, moves, x.tolist(), y)
            prior = exact.local_sampler()
            drawn = exact.sample(blocks * particles, int(rng.integers(2**62)), prior)
            weights = exact.log_reward(drawn) - exact.log_q(prior, drawn)
            below.append(weights.reshape(blocks, particles))
            above.append(float(exact.log_reward([z])[0] - exact.log_q(prior, [z])[0]))
            truth.append(exact.log_z)
        interval = mean_log_z_interval(np.array(below), np.array(above))
        covered += interval.covers(float(np.mean(truth)))
        widths.append(interval.half_width)
    return {
        "coverage": covered / trials,
        "trials": float(trials),
        "half_width": float(np.mean(widths)),
        "widest half_width": float(np.max(widths)),
    }
