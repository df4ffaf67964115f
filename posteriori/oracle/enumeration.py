"""The exact posterior of one X by enumeration of every legal Z, and how far a sampler is from it.

Each distinct prefix costs one token forward, packed into token trees. Log-likelihoods are float32
forwards; every sum over strings is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posteriori import metrics
from posteriori.decoding import move_log_q
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.oracle.strings import StringTree
from posteriori.rewards import checked_log_reward
from posteriori.seams import Prompt, Reward

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SEQUENCES_PER_CALL = 8192
"""Sequences handed to a reward at once, which bounds the memory of its trees."""


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """σ(z) = R(z⊤ | X) / Z(X) for every legal z.

    Attributes:
        tree: the strings; "string k" below is its string k.
        log_reward: log R of each string, nats, float64 [count].
    """

    tree: StringTree
    log_reward: FloatArray

    @property
    def count(self) -> int:
        """Number of strings."""
        return self.tree.count

    @cached_property
    def log_z(self) -> float:
        """log Z(X) = log Σ R, nats."""
        return metrics.log_sum_exp(self.log_reward)

    @cached_property
    def log_sigma(self) -> FloatArray:
        """log σ of each string, [count]."""
        return self.log_reward - self.log_z

    @cached_property
    def entropy(self) -> float:
        """H(σ) in nats; exp(entropy) is the effective number of strings."""
        return metrics.entropy(self.log_sigma)

    def first_token_marginal(self, log_p: FloatArray | None = None) -> FloatArray:
        """Probability of each first move, ⊤ (the empty Z) last; [V + 1].

        Args:
            log_p: log-probabilities of all strings; None: σ.
        """
        size = len(self.tree.moves.alphabet) + 1
        return _histogram(self.tree.first_columns, self._probabilities(log_p), size)

    def length_marginal(self, log_p: FloatArray | None = None) -> FloatArray:
        """Probability of each length in actions, [max_tokens + 1]."""
        size = self.tree.moves.max_tokens + 1
        return _histogram(self.tree.lengths, self._probabilities(log_p), size)

    def _probabilities(self, log_p: FloatArray | None) -> FloatArray:
        probabilities: FloatArray = np.exp(self.log_sigma if log_p is None else log_p)
        return probabilities

    def sample(self, n: int, seed: int) -> IntArray:
        """n independent exact draws from σ, as string indices."""
        cumulative = np.cumsum(np.exp(self.log_sigma))
        uniform = np.random.default_rng(seed).random(n) * cumulative[-1]
        drawn: IntArray = np.searchsorted(cumulative, uniform, side="right").astype(np.int64)
        return drawn

    def top(self, n: int) -> IntArray:
        """The n most probable strings, most probable first."""
        return np.argsort(-self.log_sigma, kind="stable")[:n]


def _histogram(values: IntArray, weights: FloatArray, size: int) -> FloatArray:
    return np.bincount(values, weights, minlength=size).astype(np.float64)


def enumerate_posterior(
    problem: str, prompt: Prompt, moves: LegalMoves, reward: Reward, max_strings: int
) -> ExactPosterior:
    """Score every legal Z of one X.

    Args:
        problem: name used in errors.
        prompt: X.
        moves: legal Z.
        reward: log R.
        max_strings: refuse more than this many.

    Raises:
        UserError: too many strings, found before any is scored.
        RewardError: the reward is not finite somewhere, or has the wrong shape.
    """
    tree = StringTree.of(moves, max_strings)
    scores = np.full(len(tree), np.nan)
    for start in range(0, len(tree.maximal), SEQUENCES_PER_CALL):
        paths = [tree.path(node) for node in tree.maximal[start : start + SEQUENCES_PER_CALL]]
        sequences = [tree.prefix(path[-1]) for path in paths]
        found = checked_log_reward(reward, problem, prompt, moves, sequences)
        for path, prefix_scores in zip(paths, found, strict=True):
            scores[path] = prefix_scores[tree.token_depths[path]]
    return ExactPosterior(tree, scores[tree.strings])


def exact_log_q(
    tree: StringTree,
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> FloatArray:
    """log q(z⊤) of every string under a base LM or policy, normalised over the legal moves.

    Args:
        tree: the strings.
        lm: the sampler; its model may carry an active LoRA adapter.
        prompt_ids: the policy's prompt, at least one token.
        temperature, top_p: of token-level tempering and nucleus sampling, as in ``decoding.sample``.

    Returns:
        Nats, float64 [count]; exp sums to 1.
    """
    conditional = exact_moves(tree, lm, prompt_ids, temperature, top_p)
    stop = len(tree.moves.alphabet)
    log_q: FloatArray = (log_prefixes(tree, conditional) + conditional[:, stop])[tree.strings]
    return log_q


def exact_moves(
    tree: StringTree,
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> FloatArray:
    """log q of every move at every prefix, arguments as in :func:`exact_log_q`.

    ⊤ is forced, at no cost, where nothing else is legal, so prefixes of ``max_tokens`` need no forward.

    Returns:
        Nats, float64 [N, V + 1], -inf where illegal.
    """
    conditional = np.where(tree.legal, 0.0, -np.inf)
    packs = list(tree.packs(tree.legal.sum(axis=1) > 1, prompt_ids))
    trees, places = [pack[0] for pack in packs], [pack[2] for pack in packs]
    for index, logits in lm.node_logits(trees, places, tree.moves.column_tokens):
        nodes = packs[index][1]
        scores = tree.scores(nodes, logits.double().cpu().numpy())
        conditional[nodes] = move_log_q(scores, temperature, top_p)
    return conditional


def log_prefixes(tree: StringTree, conditional: FloatArray) -> FloatArray:
    """log q of reaching every prefix, ⊤ left out, from the log q of every move; nats, [N]."""
    prefixes = np.zeros(len(tree))
    for level in tree.levels[1:]:
        parents = tree.parents[level]
        prefixes[level] = prefixes[parents] + conditional[parents, tree.columns[level]]
    return prefixes


@dataclass(frozen=True)
class Discrepancy:
    """One string of the table: its share σ log(σ/q) of KL(σ‖q)."""

    tokens: tuple[int, ...]
    log_sigma: float
    log_q: float
    contribution: float


@dataclass(frozen=True)
class Fidelity:
    """How far a sampler is from the exact posterior; nats, see ``posteriori.metrics``.

    Attributes:
        total_variation: TV(σ, q).
        kl_posterior_q: KL(σ‖q), which sees forgotten strings.
        kl_q_posterior: KL(q‖σ), which sees strings drawn too often.
        js_divergence: Jensen–Shannon divergence.
        ess_fraction: exact limit of ESS/N of weights R/q.
        first_token_error, length_error: TV between the marginals.
        worst: strings with the largest |σ log(σ/q)|.
    """

    total_variation: float
    kl_posterior_q: float
    kl_q_posterior: float
    js_divergence: float
    ess_fraction: float
    first_token_error: float
    length_error: float
    worst: tuple[Discrepancy, ...]


def fidelity(exact: ExactPosterior, log_q: FloatArray, worst: int = 10) -> Fidelity:
    """Compare q with σ over all strings.

    Args:
        exact: σ.
        log_q: of every string, as from ``exact_log_q``.
        worst: rows of the table of discrepancies.
    """
    log_sigma = exact.log_sigma
    contributions = np.exp(log_sigma) * (log_sigma - log_q)
    order = np.argsort(-np.abs(contributions), kind="stable")[:worst]
    return Fidelity(
        total_variation=metrics.total_variation(log_sigma, log_q),
        kl_posterior_q=metrics.kl_divergence(log_sigma, log_q),
        kl_q_posterior=metrics.kl_divergence(log_q, log_sigma),
        js_divergence=metrics.js_divergence(log_sigma, log_q),
        ess_fraction=metrics.exact_ess_fraction(log_sigma, log_q),
        first_token_error=metrics.marginal_error(
            exact.first_token_marginal(log_q), exact.first_token_marginal()
        ),
        length_error=metrics.marginal_error(exact.length_marginal(log_q), exact.length_marginal()),
        worst=tuple(
            Discrepancy(
                tokens=tuple(exact.tree.tokens(int(k))),
                log_sigma=float(log_sigma[k]),
                log_q=float(log_q[k]),
                contribution=float(contributions[k]),
            )
            for k in order
        ),
    )
