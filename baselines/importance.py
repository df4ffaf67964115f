"""Independent proposals from the base LM, corrected by the reward: SNIS, SIR, best-of-n, rejection."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baselines.draws import Budget, Draws, FloatArray, scored
from posteriori import decoding, metrics
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.seams import Prompt

PROPOSALS_PER_BATCH = 256

BOUND_SLACK_NATS = 1e-4
"""Rounding of float32 log-probabilities: a weight this far above its bound does not violate it."""


def snis(
    problem: Problem, prompt: Prompt, n: int, seed: int, *, lm: LanguageModel | None = None
) -> Draws:
    """Self-normalised importance sampling: n draws of the base LM with weights R/q.

    Bias and variance of order exp(KL(σ‖q)) / n (Chatterjee & Diaconis 2018).

    Args:
        problem, prompt: what to sample.
        n: weighted draws.
        seed: of the draws.
        lm: the proposal; None: the problem's base LM.
    """
    proposal = lm or problem.lm
    ids = problem.policy_ids(prompt)
    drawn = decoding.sample(proposal, ids, problem.moves(prompt), n, seed)
    tokens = [list(sample.tokens) for sample in drawn]
    log_q = np.array([sample.total_log_q for sample in drawn])
    log_reward, evaluations = scored(problem, prompt, tokens)
    log_weights = log_reward - log_q
    return Draws(
        tokens,
        log_q,
        log_reward,
        log_weights,
        Budget(decoding.token_forwards(ids, drawn), evaluations),
        metrics.log_z_estimate(log_weights),
    )


def sir(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    candidates: int = 16,
    lm: LanguageModel | None = None,
) -> Draws:
    """Sampling importance resampling: each sample is one of its own ``candidates`` draws, taken by weight.

    The samples are independent, and exact as ``candidates`` grows (Rubin 1988).
    """
    pool = snis(problem, prompt, n * candidates, seed, lm=lm)
    # Gumbel maxima: argmax of log w + G is a draw by weight, also among weights that underflow.
    noise = np.random.default_rng([seed, 1]).gumbel(size=n * candidates)
    return _take(pool, pool.log_weights + noise, n)


def best_of_n(
    problem: Problem, prompt: Prompt, n: int, seed: int, *, candidates: int = 16
) -> Draws:
    """Each sample is the one with the largest R among its own ``candidates`` draws of the base LM.

    Not a posterior sampler: with more candidates it tends to the mode.
    """
    pool = snis(problem, prompt, n * candidates, seed)
    return _take(pool, pool.log_reward, n)


def _take(pool: Draws, scores: FloatArray, n: int) -> Draws:
    """The best-scored draw of each of n equal blocks."""
    size = len(pool) // n
    chosen = np.arange(n) * size + scores.reshape(n, size).argmax(axis=1)
    return Draws(
        tokens=[pool.tokens[k] for k in chosen],
        log_q=np.full(n, np.nan),
        log_reward=pool.log_reward[chosen],
        log_weights=np.zeros(n),
        budget=pool.budget,
        log_z=pool.log_z,
    )


def rejection(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    log_bound: float = 0.0,
    max_proposals: int = 100_000,
) -> Draws:
    """Exact samples: a draw of the base LM is kept with probability R / (q · bound).

    Args:
        problem, prompt: what to sample.
        n: samples.
        seed: of the draws.
        log_bound: log of a bound on R/q, q normalised over the legal moves. 0 holds for every reward
            that is a probability of z⊤ under the same model, such as a hard constraint's.
        max_proposals: give up after this many.

    Raises:
        UserError: a weight exceeds the bound, so the samples would not be exact; or too few were kept.
    """
    ids, moves = problem.policy_ids(prompt), problem.moves(prompt)
    budget = Budget()
    kept: list[tuple[list[int], float]] = []
    proposed = 0
    for batch_seed, rng in _streams(seed):
        size = min(PROPOSALS_PER_BATCH, max_proposals - proposed)
        if len(kept) >= n or size == 0:
            break
        drawn = decoding.sample(problem.lm, ids, moves, size, batch_seed)
        tokens = [list(sample.tokens) for sample in drawn]
        log_reward, evaluations = scored(problem, prompt, tokens)
        log_weights = log_reward - np.array([sample.total_log_q for sample in drawn])
        worst = int(log_weights.argmax())
        if log_weights[worst] > log_bound + BOUND_SLACK_NATS:
            raise UserError(
                f"Rejection: Z = {problem.text(tokens[worst])!r} has log R/q = {log_weights[worst]:.3f}, above the "
                f"bound {log_bound:g}.",
                "Give a log_bound that holds for every Z, or use sir or smc, which need none.",
            )
        accepted = np.log(rng.random(size)) < log_weights - log_bound
        kept += [(tokens[k], float(log_reward[k])) for k in np.flatnonzero(accepted)]
        proposed += size
        budget += Budget(decoding.token_forwards(ids, drawn), evaluations)
    if len(kept) < n:
        raise UserError(
            f"Rejection kept {len(kept)} of {proposed} proposals, fewer than the {n} samples asked for.",
            "Lower log_bound if a smaller one holds, raise max_proposals, or use smc.",
        )
    # The acceptance rate estimates Z / bound.
    rate = len(kept) / proposed
    error = float(np.sqrt((1 - rate) / (rate * proposed)))
    return Draws(
        tokens=[tokens for tokens, _ in kept[:n]],
        log_q=np.full(n, np.nan),
        log_reward=np.array([value for _, value in kept[:n]]),
        log_weights=np.zeros(n),
        budget=budget,
        log_z=metrics.Estimate(float(np.log(rate)) + log_bound, error),
    )


def _streams(seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    """A seed of proposals and a generator of acceptances for batch after batch."""
    root = np.random.SeedSequence(seed)
    while True:
        proposals, acceptances = root.spawn(2)
        yield int(proposals.generate_state(1, np.uint64)[0]), np.random.default_rng(acceptances)
