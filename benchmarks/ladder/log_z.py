"""How often, and how tightly, the two-sided interval for log Z holds the exact value."""

from __future__ import annotations

import numpy as np

from benchmarks.ladder.ground import Metrics
from benchmarks.ladder.markov import posterior
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel
from posteriori.log_z_bounds import log_z_interval, mean_log_z_interval
from posteriori.metrics import FloatArray
from posteriori.moves import LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior, Sampler
from posteriori.oracle.markov import MarkovTable
from posteriori.problems import build_problems

TRIALS = 200
PARTICLES = 512
POSTERIOR_DRAWS = 64
"""Blocks of ``PARTICLES``: 32,768 draws of the sampler and 64 of the posterior in a trial."""


class Walk:
    """Importance weights log R − log q of strings of fixed length without the strings: many at once.

    Args:
        exact: the posterior; its moves fix the length and have no automaton.
        sampler: q.
        drawn_by: who draws the strings: q, or σ for exact draws.
    """

    def __init__(self, exact: MarkovPosterior, sampler: Sampler, drawn_by: Sampler) -> None:
        moves = exact.moves
        if moves.min_tokens != moves.max_tokens or len(moves.accepting) != 1:
            raise ValueError("a walk has a fixed length and no constraint")
        lengths = range(moves.max_tokens)
        self._table, self._alphabet = exact.table, moves.alphabet
        self._start, self._log_z = exact.table.context_of(exact.prompt_ids), exact.log_z
        # Behind the last token ⊤ is certain under both.
        self._ratios = [exact.conditional(n)[:, 0, :-1] - sampler(n)[:, 0, :-1] for n in lengths]
        self._cumulative = [np.exp(drawn_by(n)[:, 0, :-1]).cumsum(axis=1) for n in lengths]

    def log_weights(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Of n independent strings: log Z + Σ (log σ − log q) of their tokens; [n]."""
        contexts = np.full(n, self._start)
        total = np.full(n, self._log_z)
        for ratios, cumulative in zip(self._ratios, self._cumulative, strict=True):
            rows = cumulative[contexts]
            columns = (rows <= (rng.random(n) * rows[:, -1])[:, None]).sum(axis=1)
            total += ratios[contexts, columns]
            contexts = self._table.following(contexts, self._alphabet[columns])
        return total


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

    from_q, from_sigma = Walk(exact, sampler, sampler), Walk(exact, sampler, exact.conditional)
    rng = np.random.default_rng(seed)
    covered, widths = 0, []
    for _ in range(trials):
        below = from_q.log_weights(PARTICLES * POSTERIOR_DRAWS, rng)
        above = from_sigma.log_weights(POSTERIOR_DRAWS, rng)
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

    Twelve X's a trial; (Z, Y) ~ p(· | X), Z of eight tokens and Y of three; the sampler is the prior
    p(Z | X). The exact log Z(X, Y) is used for the verdict alone.
    """
    lm = LanguageModel.load(reward_lm)
    table = MarkovTable.from_model(lm.model)
    words = np.array([i for i in range(lm.vocabulary_size) if i not in lm.special_ids])
    length, suffix, prompts, blocks, particles = 8, 3, 12, 4, 2048
    moves = LegalMoves.free(words, int(lm.tokenizer.eos_token_id), length, length)
    rng = np.random.default_rng(seed)
    covered, widths = 0, []
    for _ in range(trials):
        below: list[FloatArray] = []
        above: list[float] = []
        truth: list[float] = []
        while len(truth) < prompts:
            x = rng.choice(words, table.window)
            (joint,) = table.sample(x[None], length + suffix, int(rng.integers(2**62)))
            if not np.isin(joint, words).all():
                continue  # the LM stopped: not a Z of this length
            z, y = joint[:length].tolist(), joint[length:].tolist()
            exact = MarkovPosterior.infilling(table, moves, x.tolist(), y)
            prior = exact.local_sampler()
            weights = Walk(exact, prior, prior).log_weights(blocks * particles, rng)
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
