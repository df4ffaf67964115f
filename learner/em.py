"""Variational EM: M steps between the E steps of the learner (paper, section 3; Neal & Hinton 1998).

For every X and q the bound E_q[log R_θ(Z) − log q(Z)] = log Z_θ(X) − KL(q‖σ_θ) holds; where R is
p(Z, Y | X) it is the evidence lower bound of log p_θ(Y | X). An E step moves q towards σ_θ with θ
fixed. An M step draws chains Z from q and moves θ, an adapter of the reward LM, up the gradient of
E_q[log R_θ] with q fixed. X is given throughout: its own likelihood is not fitted.

An M step is a pure function of the policy, the adapter before it, the seed and the round. So its
resumption needs no state of its own: one that was cut short is done again from its beginning.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import checkpoint as checkpoints
from learner.checkpoint import Checkpoint
from posteriori import decoding
from posteriori.config import RunConfig
from posteriori.fitted_reward import FittedReward
from posteriori.lm import LanguageModel
from posteriori.metrics import Estimate, mean_estimate
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.rewards import ScoredText, checked_log_reward
from posteriori.seams import AdapterStore, Prompt
from posteriori.tree import TokenTree, TreeBuilder, batches, node_logits

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

ADAPTERS_KEPT = 3
"""Newest versions kept in the store: an actor takes up the newest, and may be fetching the one before."""

CLIP_NORM = 1.0


@dataclass(frozen=True, eq=False)
class Chains:
    """Z's drawn from q for one X: the distinct ones, how often each was drawn, and log q of each.

    Attributes:
        tokens: K distinct Z.
        shares: of the draws, [K], sum 1.
        log_q: log q(z⊤), nats, [K].
        draws: number of draws.
    """

    problem: Problem
    prompt: Prompt
    tokens: list[list[int]]
    shares: FloatArray
    log_q: FloatArray
    draws: int


@dataclass(frozen=True, eq=False)
class WeightedTree:
    """Texts of one X packed together: Σᵢ coefficientᵢ · log p(node i | path) is their log-likelihood."""

    tree: TokenTree
    coefficients: FloatArray


class VariationalEm:
    """The M steps of one run.

    Args:
        config: the resolved run file, with its ``em`` section.
        problems: of the run; their rewards follow the adapter.
        directory: of the run; ``reward/`` below it holds a checkpoint a round.
        adapters: where versions of the reward's adapter are published for the rollout actors.
        stopped: ends an M step when set; it counts for nothing then.
        on_event: called with (kind, message).

    Attributes:
        round: M steps done.
        reward: what they fit.

    Raises:
        UserError: the problems have nothing that an M step can fit.
    """

    def __init__(
        self,
        config: RunConfig,
        problems: Sequence[Problem],
        directory: Path,
        adapters: AdapterStore,
        stopped: threading.Event,
        on_event: Callable[[str, str], object],
    ) -> None:
        assert config.em is not None
        self.settings = config.em
        self.reward = FittedReward(problems, self.settings.objective)
        self.round = 0
        self._config = config
        self._shape = config.learner.model_copy(update={"lora_rank": self.settings.lora_rank})
        self._targets = [(problem, prompt) for problem in problems for prompt in problem.prompts]
        self._directory = directory / "reward"
        self._adapters = adapters
        self._files: Mapping[str, bytes] | None = None
        self._stopped = stopped
        self._on_event = on_event
        parts = self.settings.rounds + 1
        self._bounds = [config.learner.steps * part // parts for part in range(parts + 1)]

    # ----------------------------------------------------------------------------- the schedule

    def e_step(self, step: int) -> tuple[int, int]:
        """First learner step of the E step that ``step`` (from 0) belongs to, and its length."""
        part = min(bisect_right(self._bounds, step) - 1, self.settings.rounds)
        return self._bounds[part], self._bounds[part + 1] - self._bounds[part]

    def due(self, step: int) -> bool:
        """Does an M step come before learner step ``step``?"""
        return self.round < self.settings.rounds and step >= self._bounds[self.round + 1]

    # -------------------------------------------------------------------------------- the steps

    def announce(self) -> None:
        """Publish the adapter in force if the store's newest is another one, of a killed attempt.

        Scores by that one would be recognised as stale whenever they were drawn, and redone.
        """
        if self._adapters.latest() != self.reward.version:
            files = self._files or Policy(self.reward.base, self._shape).adapter_files()
            self._put_in_force(files)

    def bound(self, policy: LanguageModel, seed_part: int = 0) -> dict[str, float]:
        """E_q[log R − log q] of fresh chains, mean over the X's: ``bound``, ``bound_se``, nats.

        ``bound/NAME`` are those of each problem. At most ``m_steps · prompts_per_step`` X's are used.
        """
        return _bound_metrics(self._draw(policy, seed_part))

    def m_step(self, policy: LanguageModel) -> dict[str, float]:
        """One M step; empty if it was stopped on the way.

        Returns:
            ``em_round`` (from 1), ``bound`` of q under the reward before, ``bound_after`` under the
            one after it, on fresh chains; ``m_objective_before`` and ``m_objective_after``:
            E_q[log p] of the fitted terms on the chains it was fitted to; ``reward_version``.

        Raises:
            StorageFull, StorageUnreachable, UserError: the adapter could not be saved or published.
        """
        began = time.monotonic()
        chains = self._draw(policy, seed_part=0)
        metrics = _bound_metrics(chains)
        found = self.maximise(chains)
        if found is None:
            return {}
        before, after = found
        later = _bound_metrics(self._draw(policy, seed_part=1))
        return metrics | {
            "em_round": float(self.round),
            "bound_after": later["bound"],
            "bound_after_se": later["bound_se"],
            "m_objective_before": before,
            "m_objective_after": after,
            "reward_version": float(self.reward.version),
            "m_step_seconds": time.monotonic() - began,
        }

    def maximise(self, chains: Sequence[Chains]) -> tuple[float, float] | None:
        """Fit the adapter to chains and put it in force, if that raises their E_q[log p] at all.

        Returns:
            E_q[log p of the fitted terms] before and after, the mean over the X's in nats; None if
            stopped on the way.
        """
        packed = [self.pack(drawn) for drawn in chains]
        model = Policy(self.reward.base, self._shape, self._config.seed)
        if self._files is not None:
            model.load_adapter(self._files)
        before = self._log_likelihood(model, packed)
        if not self._fit(model, packed):
            return None
        after = self._log_likelihood(model, packed)
        self.round += 1
        # The same adapter again would make every stored score stale for nothing.
        if after > before:
            self._put_in_force(model.adapter_files())
        else:
            self._save(self._files or Policy(self.reward.base, self._shape).adapter_files())
            self._on_event(
                "m-step",
                f"M step {self.round} did not rise ({before:.4f} to {after:.4f} nats) and was not "
                "taken: lower em.learning_rate.",
            )
        return before, max(before, after)

    def _fit(self, model: Policy, packed: Sequence[Sequence[WeightedTree]]) -> bool:
        """``m_steps`` optimiser steps; False if stopped."""
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        width = min(self.settings.prompts_per_step, len(packed))
        for step in range(self.settings.m_steps):
            if self._stopped.is_set():
                return False
            optimizer.zero_grad(set_to_none=True)
            self.accumulate(model, [packed[(step * width + i) % len(packed)] for i in range(width)])
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
        return True

    def accumulate(self, model: Policy, packed: Sequence[Sequence[WeightedTree]]) -> None:
        """Add the gradient of −E_q[log p of the fitted terms], the mean over the X's, to ``grad``."""
        for part in self._microbatches(packed):
            (-log_likelihood(model, part) / len(packed)).backward()

    def _log_likelihood(self, model: Policy, packed: Sequence[Sequence[WeightedTree]]) -> float:
        """E_q[log p of the fitted terms], the mean over the X's; nats."""
        with torch.no_grad():
            found = [float(log_likelihood(model, part)) for part in self._microbatches(packed)]
        return sum(found) / len(packed)

    def _microbatches(
        self, packed: Sequence[Sequence[WeightedTree]]
    ) -> Iterator[list[WeightedTree]]:
        trees = [tree for of_prompt in packed for tree in of_prompt]
        budget = self._config.learner.tokens_per_microbatch
        for chosen in batches([item.tree for item in trees], budget):
            yield [trees[i] for i in chosen]

    def pack(self, chains: Chains) -> list[WeightedTree]:
        """What the adapter has to make likely for the chains of one X, each by its share."""
        texts = [
            (float(share), text)
            for share, z in zip(chains.shares, chains.tokens, strict=True)
            for text in self.reward.scored_texts(chains.problem.name, chains.prompt, z)
        ]
        return weighted_trees(texts, self._config.learner.tokens_per_microbatch)

    def _draw(self, policy: LanguageModel, seed_part: int) -> list[Chains]:
        """Chains from q for the X's of this round, in its order."""
        entropy = [self._config.seed, self.round, seed_part]
        order = np.random.default_rng([*entropy[:2], 0]).permutation(len(self._targets))
        wanted = order[: self.settings.m_steps * self.settings.prompts_per_step]
        seeds = np.random.SeedSequence(entropy).generate_state(len(self._targets), np.uint64)
        drawn = []
        for i in wanted:
            problem, prompt = self._targets[i]
            count, seed = self.settings.chains_per_prompt, int(seeds[i])
            drawn.append(draw_chains(policy, problem, prompt, count, seed))
        return drawn

    # ------------------------------------------------------------------- versions, checkpoints

    def _put_in_force(self, files: Mapping[str, bytes]) -> None:
        version = max(self.reward.version, self._adapters.latest()) + 1
        path = self._save(files, version)
        self.reward.use(path, version)
        self._files = files
        self._adapters.publish(version, files)
        self._adapters.prune(ADAPTERS_KEPT)
        self._on_event("m-step", f"Reward adapter version {version} after M step {self.round}.")

    def _save(self, files: Mapping[str, bytes], version: int | None = None) -> Path:
        version = self.reward.version if version is None else version
        return checkpoints.save(self._directory, Checkpoint(self.round, version, files, {}, {}))

    def resume(self, at_most_round: int) -> None:
        """Put the adapter of the newest round up to ``at_most_round`` in force again.

        Raises:
            UserError: its checkpoint is missing, damaged or of another shape.
        """
        found = checkpoints.load_latest(self._directory, at_most_round)
        if found is None:
            return
        self.round, self._files = found.step, found.adapter
        if found.version:
            self.reward.use(self._directory / f"step-{found.step:08d}", found.version)


def draw_chains(lm: LanguageModel, problem: Problem, prompt: Prompt, n: int, seed: int) -> Chains:
    """n independent Z of one X, equal ones merged."""
    moves, ids = problem.moves(prompt), problem.policy_ids(prompt)
    found: dict[tuple[int, ...], list[float]] = {}
    for drawn in decoding.sample(lm, ids, moves, n, seed):
        found.setdefault(tuple(drawn.tokens), []).append(drawn.total_log_q)
    return Chains(
        problem=problem,
        prompt=prompt,
        tokens=[list(z) for z in found],
        shares=np.array([len(values) / n for values in found.values()]),
        log_q=np.array([values[0] for values in found.values()]),
        draws=n,
    )


def bound_of(chains: Chains) -> Estimate:
    """Estimate of E_q[log R − log q] of one X under its reward in force; nats."""
    problem, prompt = chains.problem, chains.prompt
    moves = problem.moves(prompt)
    found = checked_log_reward(problem.reward, problem.name, prompt, moves, chains.tokens)
    log_weights = np.array([scores[-1] for scores in found]) - chains.log_q
    counts = np.rint(chains.shares * chains.draws).astype(np.int64)
    return mean_estimate(np.repeat(log_weights, counts))


def _bound_metrics(chains: Sequence[Chains]) -> dict[str, float]:
    estimates = [bound_of(drawn) for drawn in chains]
    metrics = {}
    names = [drawn.problem.name for drawn in chains]
    for name in sorted(set(names)) if len(set(names)) > 1 else []:
        mine = [e.value for e, owner in zip(estimates, names, strict=True) if owner == name]
        metrics[f"bound/{name}"] = float(np.mean(mine))
    errors = np.array([estimate.standard_error for estimate in estimates])
    return metrics | {
        "bound": float(np.mean([estimate.value for estimate in estimates])),
        "bound_se": float(np.sqrt((errors**2).sum()) / len(estimates)),
    }


def weighted_trees(
    texts: Sequence[tuple[float, ScoredText]], nodes_per_tree: int
) -> list[WeightedTree]:
    """Pack texts with their shares into token trees of about ``nodes_per_tree`` nodes.

    Returns:
        Trees whose summed log-likelihoods are Σ share · weight · Σ_scored log p(token | before).
    """
    packed: list[WeightedTree] = []
    builder, weights = TreeBuilder(), dict[int, float]()

    def close() -> None:
        tree = builder.build()
        coefficients = np.zeros(len(tree))
        coefficients[list(weights)] = list(weights.values())
        packed.append(WeightedTree(tree, coefficients))

    for share, text in texts:
        if len(builder) and len(builder) + len(text.tokens) > nodes_per_tree:
            close()
            builder, weights = TreeBuilder(), {}
        nodes = builder.path(-1, text.tokens)
        for place in np.flatnonzero(text.scored):
            node = nodes[place]
            weights[node] = weights.get(node, 0.0) + share * text.weight
    if len(builder):
        close()
    return packed


def log_likelihood(model: Policy, trees: Sequence[WeightedTree]) -> Tensor:
    """Σ over trees and nodes of coefficient · log p(node | path), over the whole vocabulary.

    Returns:
        A float64 scalar, nats, with gradients where enabled.
    """
    scored = [np.flatnonzero(item.coefficients) for item in trees]
    parents = [
        np.unique(item.tree.parents[nodes]) for item, nodes in zip(trees, scored, strict=True)
    ]
    logits = node_logits(model.model, [item.tree for item in trees], parents)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for item, nodes, above, rows in zip(trees, scored, parents, logits, strict=True):
        places = np.searchsorted(above, item.tree.parents[nodes])
        log_p = torch.log_softmax(rows, dim=-1)[
            torch.from_numpy(places).to(rows.device),
            torch.from_numpy(item.tree.tokens[nodes]).to(rows.device),
        ]
        weights = torch.from_numpy(item.coefficients[nodes]).to(rows.device)
        total = total + (log_p.double() * weights).sum()
    return total
