"""Middles of several samplers for held-out stories, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.harness import Row
from experiments.infilling import judges, overlap
from experiments.infilling.scoring import log_rewards
from posteriori import metrics
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem
from posteriori.seams import Prompt

FloatArray = NDArray[np.float64]

POSTERIOR = "posterior itself (importance resampling)"


@dataclass(frozen=True, eq=False)
class Sampler:
    """An LM under a prompt of its own."""

    lm: LanguageModel
    prompt_ids: Callable[[Prompt], list[int]]


@dataclass(frozen=True, eq=False)
class Middles:
    """Draws for one held-out story: Z, log q and log R (nats), [n]."""

    tokens: list[list[int]]
    log_q: FloatArray
    log_reward: FloatArray

    def first(self, n: int) -> Middles:
        """The first n of them."""
        return Middles(self.tokens[:n], self.log_q[:n], self.log_reward[:n])


def assess(
    problem: Problem,
    samplers: Mapping[str, Sampler],
    proposals: Sequence[str],
    draws: int,
    proposal_draws: int,
    seed: int,
) -> list[Row]:
    """Rows of all samplers, and one of the posterior.

    ``kl`` is KL(q‖σ) in nats, log Ẑ − mean(log R − log q) with log Ẑ from the mixture of the proposals
    (balance heuristic): too small by what the mixture misses of Z.

    Args:
        problem: its ``test_prompts`` are the held-out stories, with the fields x, middle and y.
        samplers: by method.
        proposals: methods whose draws together stand for the posterior.
        draws: of each method that are scored.
        proposal_draws: of each proposal, at least ``draws``.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in (*samplers, POSTERIOR)}
    scorer = Scorer(problem)
    for prompt in problem.test_prompts:
        found = {
            name: _draw(
                problem,
                prompt,
                sampler,
                proposal_draws if name in proposals else draws,
                int(rng.integers(2**62)),
            )
            for name, sampler in samplers.items()
        }
        pool = [found[name] for name in proposals]
        log_weights = _mixture_weights(problem, prompt, [samplers[n] for n in proposals], pool)
        log_z = metrics.log_mean_exp(log_weights)
        tokens = [z for middles in pool for z in middles.tokens]
        log_reward = np.concatenate([middles.log_reward for middles in pool])
        chosen = rng.choice(len(tokens), draws, p=metrics.normalised_weights(log_weights))
        exact = Middles([tokens[k] for k in chosen], log_reward[chosen] - log_z, log_reward[chosen])
        scores[POSTERIOR].append(
            scorer.scores(prompt, exact) | {"ess": metrics.ess_fraction(log_weights)}
        )
        for name, middles in found.items():
            row = scorer.scores(prompt, middles.first(draws))
            row["kl"] = log_z - float(np.mean(middles.log_reward - middles.log_q))
            row["ess"] = metrics.ess_fraction(middles.log_reward - middles.log_q)
            scores[name].append(row)
    return [
        Row(name, {key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
        for name, rows in scores.items()
    ]


def _draw(problem: Problem, prompt: Prompt, sampler: Sampler, n: int, seed: int) -> Middles:
    drawn = sample(sampler.lm, sampler.prompt_ids(prompt), problem.moves(prompt), n, seed)
    tokens = [one.tokens for one in drawn]
    log_q = np.array([one.total_log_q for one in drawn])
    return Middles(tokens, log_q, log_rewards(problem, prompt, tokens))


def _mixture_weights(
    problem: Problem, prompt: Prompt, samplers: Sequence[Sampler], pool: Sequence[Middles]
) -> FloatArray:
    """log R − log of the mean density of all proposals, for every draw of all of them."""
    moves = problem.moves(prompt)
    tokens = [z for middles in pool for z in middles.tokens]
    log_q = np.stack([sequence_log_q(s.lm, s.prompt_ids(prompt), moves, tokens) for s in samplers])
    log_reward = np.concatenate([middles.log_reward for middles in pool])
    weights: FloatArray = log_reward - (np.logaddexp.reduce(log_q, axis=0) - np.log(len(log_q)))
    return weights


class Scorer:
    """Overlap with the gold middle and the judges' opinions, as means over the draws of a story."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._encoder, self._llm = judges.encoder(), judges.llm_judge()

    def scores(self, prompt: Prompt, middles: Middles) -> dict[str, float]:
        """Metrics by name; ``rating`` is of the first draw alone, calls cost money."""
        x, gold, y = (prompt.fields[name] for name in ("x", "middle", "y"))
        texts = [self._problem.text(tokens) for tokens in middles.tokens]
        found = {
            "bleu": float(np.mean([overlap.bleu(text, gold) for text in texts])),
            "gleu": float(np.mean([overlap.gleu(text, gold) for text in texts])),
            "consistent": float(np.mean([judges.consistent(x, text, y) for text in texts])),
            "log_reward": float(middles.log_reward.mean()),
            "distinct": metrics.unique_fraction([tuple(z) for z in middles.tokens]),
        }
        if self._encoder is not None:
            found["bertscore"] = float(np.mean([self._encoder.f1(text, gold) for text in texts]))
        if self._llm is not None:
            # An answer without a rating counts as the lowest one: it is counted, not dropped.
            found["rating"] = self._llm.rate(f"{x}{texts[0]}.{y}") or 1.0
        return found
