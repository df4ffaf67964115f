"""Draws have the distributions they claim, by chi-square tests with fixed seeds.

Every p-value is of one fixed seed; a wrong weight of a tenth makes them vanish, as the last test of
each kind shows by testing against a wrong distribution.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from posteriori.seams import Buffer
from tests.replay.build import config, trajectory
from tests.replay.conftest import Buffers

SMALLEST_P = 1e-3


def frequencies(buffer: Buffer, names: range, draws: int, per_prompt: int) -> NDArray[np.int64]:
    """How often the one-token trajectory of each name was drawn."""
    # Duplicates, older than all: a step's worth must have arrived before the first draw.
    [[any_one]] = buffer.draw(1, 1).groups
    buffer.insert([replace(any_one, adapter_version=0, behaviour="policy")] * per_prompt)
    counts: Counter[int] = Counter()
    for _ in range(draws):
        for group in buffer.draw(1, per_prompt).groups:
            counts.update(int(t.tokens[0]) for t in group)
    return np.array([counts[name] for name in names])


def p_value(counts: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    return float(chisquare(counts, counts.sum() * weights / weights.sum()).pvalue)


class TestPrioritised:
    def test_proportional_to_the_reward(self, buffers: Buffers) -> None:
        log_rewards = np.random.default_rng(3).normal(-40.0, 1.0, 30)
        buffer = buffers(config(prioritised_share=1.0), seed=5)
        buffer.insert([trajectory([i], float(r)) for i, r in enumerate(log_rewards)])
        counts = frequencies(buffer, range(30), 400, 50)
        weights = np.exp(log_rewards - log_rewards.max())
        assert p_value(counts, weights) > SMALLEST_P
        assert p_value(counts, weights**1.1) < SMALLEST_P

    def test_draws_are_independent(self, buffers: Buffers) -> None:
        """With replacement: neighbours are equal as often as chance has it, Σ p²."""
        log_rewards = np.random.default_rng(4).normal(0.0, 1.0, 20)
        buffer = buffers(config(prioritised_share=1.0), seed=6)
        buffer.insert([trajectory([i], float(r)) for i, r in enumerate(log_rewards)] * 4)
        drawn = np.array(
            [t.tokens[0] for _ in range(200) for g in buffer.draw(1, 64).groups for t in g]
        )
        p = np.exp(log_rewards) / np.exp(log_rewards).sum()
        expected = float((p**2).sum())
        repeats = int((drawn[1:] == drawn[:-1]).sum())
        trials = len(drawn) - 1
        # Pairs overlap, so the variance is not binomial; twice that is a safe bound here.
        assert abs(repeats - trials * expected) < 4 * np.sqrt(2 * trials * expected)

    @pytest.mark.parametrize("jump", [1.0, 45.0, 2000.0])
    def test_after_new_maxima(self, buffers: Buffers, jump: float) -> None:
        """Better and better ones arrive between draws; the last two decide."""
        buffer = buffers(config(prioritised_share=1.0), seed=7)
        log_rewards = np.array([0.0, 0.5, jump, jump + 0.7, 2 * jump, 2 * jump - 1.0])
        for i, log_reward in enumerate(log_rewards):
            buffer.insert([trajectory([i], float(log_reward))] * 30)
            assert buffer.draw(1, 30).wait is None
        counts = frequencies(buffer, range(6), 200, 50)
        weights = np.exp(log_rewards - log_rewards.max())
        possible = weights > 1e-6
        assert counts[~possible].sum() == 0
        assert p_value(counts[possible], weights[possible]) > SMALLEST_P

    def test_after_merges_that_change_the_reward(self, buffers: Buffers) -> None:
        buffer = buffers(config(prioritised_share=1.0), seed=8)
        buffer.insert([trajectory([i % 10], 0.0) for i in range(100)])
        assert buffer.draw(1, 100).wait is None
        log_rewards = np.linspace(-2.0, 8.0, 10)
        for i in np.random.default_rng(0).permutation(10):
            buffer.insert([trajectory([int(i)], float(log_rewards[i]), reward_version=1)])
            buffer.draw(1, 10)
        counts = frequencies(buffer, range(10), 400, 50)
        weights = np.exp(log_rewards - log_rewards.max())
        enough = counts.sum() * weights / weights.sum() > 5
        assert p_value(counts[enough], weights[enough] * counts[enough].sum()) > SMALLEST_P

    @pytest.mark.parametrize("gap", [10.0, 100.0, 5000.0])
    def test_after_the_best_is_gone(self, buffers: Buffers, gap: float) -> None:
        """The rest is weighted on its own scale, however small it was beside the best."""
        buffer = buffers(config(prioritised_share=1.0, capacity_per_prompt=4), seed=9)
        buffer.insert([trajectory([9], gap, version=0)])
        buffer.insert([trajectory([i], 0.5 * i, version=1) for i in range(3)])
        assert frequencies(buffer, range(9, 10), 4, 50)[0] > 195
        buffer.insert([trajectory([3], 1.5, version=1)])
        counts = frequencies(buffer, range(4), 200, 50)
        assert counts.sum() == 200 * 50
        assert p_value(counts, np.exp(0.5 * np.arange(4))) > SMALLEST_P

    def test_while_inserts_and_draws_alternate(self, buffers: Buffers) -> None:
        """Newcomers of known weight are drawn neither early nor late."""
        buffer = buffers(config(prioritised_share=1.0, capacity_per_prompt=8), seed=10)
        buffer.insert([trajectory([i], 0.0, version=0) for i in range(8)])
        ranks: Counter[int] = Counter()
        for step in range(8, 2008):
            buffer.insert([trajectory([step], 0.0, version=step)])
            [group] = buffer.draw(1, 3).groups
            ranks.update(step - int(t.tokens[0]) for t in group)
        counts = np.array([ranks[age] for age in range(8)])
        assert counts.sum() == 6000
        assert p_value(counts, np.ones(8)) > SMALLEST_P


class TestUniform:
    @pytest.mark.parametrize("per_prompt", [5, 12, 40])
    def test_every_trajectory_alike(self, buffers: Buffers, per_prompt: int) -> None:
        """Fewer, as many and more than there are."""
        buffer = buffers(config(), seed=11)
        buffer.insert([trajectory([i], 10.0 * i, version=i) for i in range(12)])
        counts = frequencies(buffer, range(12), 6000 // per_prompt, per_prompt)
        assert p_value(counts, np.ones(12)) > SMALLEST_P
        if per_prompt == 12:
            assert len(set(counts.tolist())) == 1

    def test_every_prompt_alike(self, buffers: Buffers) -> None:
        """Whatever the number of its trajectories."""
        buffer = buffers(config(), seed=12)
        buffer.insert([trajectory([i, k], prompt=f"x{i}") for i in range(9) for k in range(i + 1)])
        counts: Counter[int] = Counter()
        for _ in range(1500):
            counts.update(int(group[0].tokens[0]) for group in buffer.draw(2, 1).groups)
        assert p_value(np.array([counts[i] for i in range(9)]), np.ones(9)) > SMALLEST_P


def test_modes_have_their_shares(buffers: Buffers) -> None:
    """Each mode is recognised by the one trajectory only it prefers."""
    buffer = buffers(config(recent_share=0.5, prioritised_share=0.2), seed=13)
    # 0 is the best, 1 the newest; a uniform draw takes one of a hundred.
    buffer.insert([trajectory([0], 100.0, version=0)])
    buffer.insert([trajectory([i], 0.0, version=0) for i in range(2, 100)])
    buffer.insert([trajectory([1], 0.0, version=1)])
    counts = frequencies(buffer, range(100), 3000, 1)
    observed = np.array([counts[0], counts[1], counts[2:].sum()])
    assert p_value(observed, np.array([0.2 + 0.3 / 100, 0.5 + 0.3 / 100, 0.3 * 0.98])) > SMALLEST_P


def test_a_group_is_a_mixture(buffers: Buffers) -> None:
    """A group of the best alone would often be one trajectory, from which no residual differs."""
    buffer = buffers(config(recent_share=0.5, prioritised_share=0.2), seed=14)
    buffer.insert([trajectory([0], 100.0, version=0)])
    buffer.insert([trajectory([i], 0.0, version=0) for i in range(1, 100)])
    best = []
    for _ in range(50):
        [group] = buffer.draw(1, 40).groups
        assert len({tuple(t.tokens) for t in group}) > 20
        best.append(sum(t.tokens[0] == 0 for t in group))
    expected = 50 * 40 * (0.2 + 0.3 / 100)
    observed = np.array([sum(best), 2000 - sum(best)])
    assert p_value(observed, np.array([expected, 2000 - expected])) > SMALLEST_P
    assert min(best) < max(best)
