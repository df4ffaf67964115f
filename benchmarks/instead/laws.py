"""The law of one sample of what one would use instead of a policy, over all strings of one X.

Importance resampling (``baselines.importance.sir``) and Metropolis–Hastings (``baselines.mcmc``) have exact
laws on an enumerated tree: an integral over one variable, and powers of a kernel. A particle filter
(``posteriori.smc``) has none: it is run on the tree's tables, very often, and what it would have drawn by
weight is averaged by weight, so that only the noise of the filters is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posteriori.lm import LanguageModel
from posteriori.metrics import log_sum_exp
from posteriori.oracle.enumeration import ExactPosterior, log_prefixes
from posteriori.oracle.strings import StringTree

FloatArray = NDArray[np.float64]

QUADRATURE_POINTS = 2000
QUADRATURE_LOG_RANGE = (-30.0, 40.0)
"""Of log s: weights from e⁻⁴⁰ to e³⁰ times the mean weight are resolved."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """What proposes, and what is wanted, at every node of one X's tree.

    Attributes:
        exact: the posterior.
        log_moves: log q of every move at every prefix, from ``enumeration.exact_moves``.
    """

    exact: ExactPosterior
    log_moves: FloatArray

    @property
    def tree(self) -> StringTree:
        """The strings."""
        return self.exact.tree

    @cached_property
    def log_prefix(self) -> FloatArray:
        """log q of reaching each node, [N]."""
        return log_prefixes(self.tree, self.log_moves)

    @cached_property
    def log_q(self) -> FloatArray:
        """log q of each string, [count]."""
        strings = self.tree.strings
        log_q: FloatArray = self.log_prefix[strings] + self.log_moves[strings, -1]
        return log_q

    @cached_property
    def log_weights(self) -> FloatArray:
        """log σ/q of each string, [count]; its mean weight under q is 1."""
        return self.exact.log_sigma - self.log_q

    def distance(self, law: FloatArray) -> float:
        """TV from σ of a law over strings, [count]."""
        return 0.5 * float(np.abs(law - np.exp(self.exact.log_sigma)).sum())

    @staticmethod
    def distance_between(one: FloatArray, other: FloatArray) -> float:
        """TV between the mean laws of two sets of filters, both [runs, count].

        Of two halves it is about twice the noise that the estimate from all of them adds to a distance.
        """
        return 0.5 * float(np.abs(one.mean(axis=0) - other.mean(axis=0)).sum())

    def worth(self, weights: FloatArray) -> float:
        """Exact draws that a filter's whole population is worth, in squared error of all frequencies.

        Args:
            weights: from :meth:`filtered`, [runs, count].
        """
        sigma = np.exp(self.exact.log_sigma)
        error = ((weights - sigma) ** 2).sum(axis=1).mean()
        return float((sigma * (1 - sigma)).sum() / error)

    @cached_property
    def _laplace(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Nodes s of the integral, e^{−s w} [S, count], and log E_q[e^{−s w}] [S]."""
        s = np.exp(np.linspace(*QUADRATURE_LOG_RANGE, QUADRATURE_POINTS))
        decays = np.exp(-np.outer(s, np.exp(self.log_weights)))
        return s, decays, np.log(np.maximum(decays @ np.exp(self.log_q), 1e-300))

    def resampled(self, candidates: int) -> FloatArray:
        """Law of one of K independent draws, taken by weight; [count].

        P(z) = K q(z) w(z) E[1 / (w(z) + W)], W the sum of K − 1 other weights, and 1/a = ∫ e^{−sa} ds, so that
        P(z) = K q(z) w(z) ∫ e^{−s w(z)} (E_q e^{−s w})^{K−1} ds.
        """
        s, decays, log_mean = self._laplace
        rest = np.exp((candidates - 1) * log_mean) * s
        integral = np.trapezoid(decays * rest[:, None], np.log(s), axis=0)
        law: FloatArray = candidates * np.exp(self.exact.log_sigma) * integral
        return law

    @cached_property
    def _ancestors(self) -> FloatArray:
        """[N, count]: is the node a prefix of the string, or the string itself?"""
        found = np.zeros((len(self.tree), self.tree.count))
        nodes = self.tree.strings.copy()
        strings = np.arange(self.tree.count)
        while len(nodes):
            found[nodes, strings] = 1.0
            going = nodes > 0
            nodes, strings = self.tree.parents[nodes[going]], strings[going]
        return found

    def kernel(self, infill_share: float) -> FloatArray:
        """Transition probabilities of one Metropolis–Hastings step, [count, count]; see ``baselines.mcmc``.

        Args:
            infill_share: probability of an infill at each step; no string is empty.
        """
        suffix = self._accepted(
            self._suffix_proposals,
            self.log_weights[None, :] - self.log_weights[:, None] + self._log_choices,
        )
        infill = self._accepted(*self._infill_proposals)
        mixed: FloatArray = infill_share * infill + (1 - infill_share) * suffix
        return mixed

    @staticmethod
    def _accepted(proposals: FloatArray, log_ratio: FloatArray) -> FloatArray:
        moved: FloatArray = proposals * np.exp(np.minimum(log_ratio, 0.0))
        np.fill_diagonal(moved, 0.0)
        np.fill_diagonal(moved, 1 - moved.sum(axis=1))
        return moved

    @cached_property
    def _log_choices(self) -> FloatArray:
        """log (n + 1) / (n′ + 1), [count, count]: how many prefixes could have been kept."""
        sizes = np.log(self.tree.lengths + 1.0)
        difference: FloatArray = sizes[:, None] - sizes[None, :]
        return difference

    @cached_property
    def _suffix_proposals(self) -> FloatArray:
        """Keep one of the n + 1 prefixes, write the rest anew: Σ over common prefixes of q(z′ | prefix) / (n + 1)."""
        common = self._ancestors.T @ (np.exp(-self.log_prefix)[:, None] * self._ancestors)
        proposals: FloatArray = common * np.exp(self.log_q) / (self.tree.lengths + 1.0)[:, None]
        return proposals

    @cached_property
    def _infill_proposals(self) -> tuple[FloatArray, FloatArray]:
        """Redraw one of the n tokens without ⊤, keep the others; and log q of the old over the new token."""
        tree, count = self.tree, self.tree.count
        columns = np.full((count, tree.moves.max_tokens), -1, dtype=np.int64)
        before = np.zeros_like(columns)
        nodes = tree.strings.copy()
        while (nodes > 0).any():
            strings = np.flatnonzero(nodes > 0)
            places = tree.depths[nodes[strings]] - 1
            columns[strings, places] = tree.columns[nodes[strings]]
            nodes[strings] = tree.parents[nodes[strings]]
            before[strings, places] = nodes[strings]
        proposals, log_ratio = np.zeros((count, count)), np.zeros((count, count))
        with np.errstate(divide="ignore"):
            going_on = np.log1p(-np.exp(self.log_moves[:, -1]))
        for place in range(tree.moves.max_tokens):
            others = np.delete(columns, place, axis=1)
            here = columns[:, place] >= 0
            alike = (others[:, None, :] == others[None, :, :]).all(axis=2) & here[:, None] & here
            old, new = np.nonzero(alike)
            parents = before[old, place]
            log_new = self.log_moves[parents, columns[new, place]]
            proposals[old, new] += np.exp(log_new - going_on[parents]) / tree.lengths[old]
            # Strings that differ do so at one place; of a string and itself the ratio is 1.
            log_old = self.log_moves[parents, columns[old, place]]
            rewards = self.exact.log_reward[new] - self.exact.log_reward[old]
            log_ratio[old, new] = rewards + log_old - log_new
        return proposals, log_ratio

    def chain_distances(self, kernel: FloatArray, steps: int) -> FloatArray:
        """TV of the last state of chains of 0 … ``steps`` proposals that begin with a draw of q."""
        law = np.exp(self.log_q)
        found = [self.distance(law)]
        for _ in range(steps):
            law = law @ kernel
            found.append(self.distance(law))
        return np.array(found)

    def autocorrelation_time(self, kernel: FloatArray) -> float:
        """States of an endless chain that are worth one exact draw.

        In mean squared error of the frequencies of all strings: Σ asymptotic variance / Σ σ(1 − σ), by the
        fundamental matrix (I − P + 1σ)⁻¹.
        """
        sigma = np.exp(self.exact.log_sigma)
        fundamental = np.linalg.inv(np.eye(len(sigma)) - kernel + sigma[None, :])
        asymptotic = sigma * (2 * np.diag(fundamental) - 1 - sigma)
        return float(asymptotic.sum() / (sigma * (1 - sigma)).sum())

    @cached_property
    def flow(self) -> FloatArray:
        """log v of ``posteriori.smc.FLOW`` at every node, [N], at the true scale."""
        log_v = np.full(len(self.tree), self.exact.log_z)
        complete = np.full(len(self.tree), np.nan)
        complete[self.tree.strings] = self.exact.log_reward - self.log_q
        for level in self.tree.levels:
            inherited = log_v[np.maximum(self.tree.parents[level], 0)]
            log_v[level] = np.where(np.isnan(complete[level]), inherited, complete[level])
        return log_v

    def likelihood(self, log_p: FloatArray, exponent: float = 1.0) -> FloatArray:
        """log v of ``posteriori.smc.likelihood_twist`` at every node, [N], at the true scale.

        Args:
            log_p: of every prefix over the whole vocabulary, from :func:`log_likelihoods`.
        """
        beyond = self.exact.log_reward - exponent * log_p[self.tree.strings]
        return exponent * log_p - self.log_prefix + log_sum_exp(self.log_q + beyond)

    def filtered(
        self,
        log_v: FloatArray,
        particles: int,
        runs: int,
        rng: np.random.Generator,
        ess_threshold: float = 0.5,
    ) -> FloatArray:
        """Normalised weight that each of ``runs`` filters of K particles gives each string, [runs, count].

        The filter of ``posteriori.smc``. Its mean over runs is the law of one particle, taken by weight.

        Args:
            log_v: the twist, as :attr:`flow` or :meth:`likelihood`.
        """
        tree = self.tree
        stop = self.log_moves.shape[1] - 1
        children = np.full((len(tree), stop), -1, dtype=np.int64)
        children[tree.parents[1:], tree.columns[1:]] = np.arange(1, len(tree))
        complete = np.full(len(tree), np.nan)
        complete[tree.strings] = self.exact.log_reward - self.log_q
        cumulative = np.exp(self.log_moves).cumsum(axis=1)
        node = np.zeros((runs, particles), dtype=np.int64)
        finished = np.zeros((runs, particles), dtype=np.bool_)
        offset = np.zeros((runs, particles))
        while not finished.all():
            here = np.where(finished, complete[node], log_v[node])
            ancestors, fresh = _resampled(offset + here, ess_threshold, rng)
            node, finished, here, offset = (
                np.take_along_axis(array, ancestors, axis=1)
                for array in (node, finished, here, offset)
            )
            offset = np.where(np.isnan(fresh)[:, None], offset, fresh[:, None] - here)
            running = ~finished
            at = cumulative[node[running]]
            drawn = (at <= rng.random(len(at))[:, None] * at[:, -1:]).sum(axis=1)
            moved = node[running]
            going = drawn < stop
            moved[going] = children[moved[going], drawn[going]]
            node[running] = moved
            finished[running] = ~going | (tree.depths[moved] == tree.moves.max_tokens)
        weights = np.exp(_centred(offset + complete[node]))
        weights /= weights.sum(axis=1, keepdims=True)
        place = np.full(len(tree), -1, dtype=np.int64)
        place[tree.strings] = np.arange(tree.count)
        cells = np.arange(runs)[:, None] * tree.count + place[node]
        sizes = runs * tree.count
        counted: FloatArray = np.bincount(cells.ravel(), weights.ravel(), sizes).astype(np.float64)
        return counted.reshape(runs, tree.count)


def log_likelihoods(tree: StringTree, lm: LanguageModel, prompt_ids: Sequence[int]) -> FloatArray:
    """log p of every prefix over the whole vocabulary, ⊤ left out; nats, [N]."""
    edges = np.zeros(len(tree))
    packs = list(tree.packs(np.ones(len(tree), dtype=np.bool_), prompt_ids))
    found = lm.edge_log_probs([pack[0] for pack in packs])
    for (_, nodes, places), scores in zip(packs, found, strict=True):
        edges[nodes] = scores[places]
    edges[0] = 0.0
    for level in tree.levels[1:]:
        edges[level] += edges[tree.parents[level]]
    return edges


def _centred(log_weights: FloatArray) -> FloatArray:
    centred: FloatArray = log_weights - log_weights.max(axis=1, keepdims=True)
    return centred


def _resampled(
    log_weights: FloatArray, threshold: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray]:
    """Ancestors of every particle, [R, K], and log mean weight of the runs that were resampled, else NaN, [R]."""
    runs, particles = log_weights.shape
    weights = np.exp(_centred(log_weights))
    totals = weights.sum(axis=1)
    poor = totals**2 / (weights**2).sum(axis=1) < threshold * particles * (1 - 1e-9)
    ancestors = np.tile(np.arange(particles), (runs, 1))
    cumulative = np.cumsum(weights / totals[:, None], axis=1)
    points = (np.arange(particles) + rng.random((runs, 1))) / particles * cumulative[:, -1:]
    for run in np.flatnonzero(poor):
        ancestors[run] = np.searchsorted(cumulative[run], points[run], side="right")
    np.minimum(ancestors, particles - 1, out=ancestors)
    means = np.array([log_sum_exp(row) for row in log_weights[poor]]) - np.log(particles)
    fresh = np.full(runs, np.nan)
    fresh[poor] = means
    return ancestors, fresh


def smallest(distance: Callable[[int], float], bound: float, largest: int) -> int | None:
    """The smallest size from 1 to ``largest`` whose distance keeps the bound; None: none does.

    Args:
        distance: falls with the size.
    """
    low, high = 0, 1
    while distance(high) > bound:
        if high == largest:
            return None
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if distance(middle) <= bound else (middle, high)
    return high
