"""Intervals for log Z: how often they cover the exact value, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from posteriori.log_z_bounds import log_z_interval, mean_log_z_interval, sandwich
from posteriori.metrics import Estimate, FloatArray, log_sum_exp

TRIALS = 120


def discrete(seed: int, size: int = 400) -> tuple[FloatArray, FloatArray, float]:
    """log R, log q and log Z of a finite space on which q is a poor fit: KL(σ‖q) about 1 nat."""
    rng = np.random.default_rng(seed)
    log_reward = rng.normal(-7.0, 1.4, size)
    log_q = rng.normal(0.0, 0.6, size)
    return log_reward, log_q - log_sum_exp(log_q), log_sum_exp(log_reward)


def draw(log_p: FloatArray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    probabilities = np.exp(log_p - log_sum_exp(log_p))
    return rng.choice(len(log_p), size=shape, p=probabilities)


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    log_reward, log_q, log_z = discrete(0)
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(TRIALS):
        z = draw(log_q, (16_384,), rng)
        y = draw(log_reward, (64,), rng)
        interval = log_z_interval(log_reward[z] - log_q[z], log_reward[y] - log_q[y], 256)
        covered += interval.covers(log_z)
        widths.append(interval.half_width)
    assert covered >= 0.93 * TRIALS
    assert np.mean(widths) <= 0.05


def test_intervals_of_half_the_errors_miss_more_often() -> None:
    """The test above can fail: with a confidence of 0.3 the same draws cover far less often."""
    log_reward, log_q, log_z = discrete(0)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(TRIALS):
        z = draw(log_q, (16_384,), rng)
        y = draw(log_reward, (64,), rng)
        weights, exact = log_reward[z] - log_q[z], log_reward[y] - log_q[y]
        covered += log_z_interval(weights, exact, 256, confidence=0.3).covers(log_z)
    assert covered < 0.8 * TRIALS


def test_one_joint_draw_for_each_prompt_bounds_the_mean() -> None:
    """Y's with posteriors of their own, of which each gives a single exact draw."""
    prompts = [discrete(seed, size=60) for seed in range(12)]
    truth = float(np.mean([log_z for _, _, log_z in prompts]))
    rng = np.random.default_rng(2)
    covered, widths = 0, []
    for _ in range(TRIALS):
        weights, exact = [], []
        for log_reward, log_q, _ in prompts:
            z = draw(log_q, (4, 512), rng)
            y = draw(log_reward, (1,), rng)[0]
            weights.append(log_reward[z] - log_q[z])
            exact.append(log_reward[y] - log_q[y])
        interval = mean_log_z_interval(weights, exact)
        covered += interval.covers(truth)
        widths.append(interval.half_width)
    assert covered >= 0.93 * TRIALS
    assert np.mean(widths) <= 0.05


def test_the_sides_are_moved_outwards_by_their_errors() -> None:
    interval = sandwich(Estimate(-3.0, 0.1), Estimate(-2.9, 0.2), confidence=0.95)
    assert interval.low == pytest.approx(-3.0 - 0.196, abs=1e-3)
    assert interval.high == pytest.approx(-2.9 + 0.392, abs=1e-3)
    assert interval.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert interval.covers(interval.middle)
    assert not interval.covers(interval.high + 1e-6)


def test_a_single_draw_is_no_interval() -> None:
    with pytest.raises(ValueError, match="standard error"):
        sandwich(Estimate(-3.0, float("nan")), Estimate(-2.9, 0.1))
    with pytest.raises(ValueError, match="n, B >= 2"):
        mean_log_z_interval(np.zeros((3, 1, 4)), np.zeros(3))
