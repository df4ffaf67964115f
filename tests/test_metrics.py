"""Every metric against a case computed by hand, and the bounds against an enumerable toy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posteriori import metrics

P = np.log([0.5, 0.3, 0.2])
Q = np.log([0.2, 0.3, 0.5])


@pytest.fixture(scope="module")
def toy() -> tuple[np.ndarray, np.ndarray, float]:
    """log R, log q and log Z over 40 outcomes."""
    rng = np.random.default_rng(0)
    log_reward = rng.normal(-30, 1.5, 40)
    log_q = np.log(rng.dirichlet(np.ones(40)))
    return log_reward, log_q, metrics.log_sum_exp(log_reward)


def draws(log_p: np.ndarray, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(log_p), n, p=np.exp(log_p) / np.exp(log_p).sum())


# ---------------------------------------------------------------- divergences


def test_total_variation_by_hand() -> None:
    assert metrics.total_variation(P, Q) == pytest.approx(0.3)
    assert metrics.total_variation(np.log([1, 1e-300]), np.log([1e-300, 1])) == pytest.approx(1)


def test_kl_by_hand_and_not_symmetric() -> None:
    assert metrics.kl_divergence(P, Q) == pytest.approx(0.5 * math.log(2.5) + 0.2 * math.log(0.4))
    r = np.log([0.9, 0.05, 0.05])
    forward = 0.5 * math.log(5 / 9) + 0.3 * math.log(6) + 0.2 * math.log(4)
    backward = 0.9 * math.log(9 / 5) + 0.05 * math.log(1 / 6) + 0.05 * math.log(1 / 4)
    assert metrics.kl_divergence(P, r) == pytest.approx(forward)
    assert metrics.kl_divergence(r, P) == pytest.approx(backward)


def test_kl_with_zeros() -> None:
    half = np.array([math.log(0.5), math.log(0.5), -np.inf])
    assert metrics.kl_divergence(half, P) == pytest.approx(0.5 * math.log(0.5 / 0.3))
    assert metrics.kl_divergence(P, half) == math.inf
    assert metrics.kl_divergence(half, half) == 0.0


def test_js_by_hand_and_bounded_where_kl_is_infinite() -> None:
    disjoint = (np.array([0.0, -np.inf]), np.array([-np.inf, 0.0]))
    assert metrics.js_divergence(*disjoint) == pytest.approx(math.log(2))
    m = np.array([0.35, 0.3, 0.35])
    by_hand = 0.5 * (0.5 * math.log(0.5 / 0.35) + 0.2 * math.log(0.2 / 0.35)) * 2
    assert np.exp(np.logaddexp(P, Q) - math.log(2)) == pytest.approx(m)
    assert metrics.js_divergence(P, Q) == pytest.approx(by_hand)
    assert metrics.js_divergence(P, Q) == pytest.approx(metrics.js_divergence(Q, P))


def test_entropy_by_hand() -> None:
    assert metrics.entropy(np.full(8, -math.log(8))) == pytest.approx(math.log(8))
    assert metrics.entropy(np.array([0.0, -np.inf])) == 0.0


def test_unnormalised_or_unequal_input_is_refused() -> None:
    with pytest.raises(ValueError, match="not to 1"):
        metrics.total_variation(P, Q + 0.1)
    with pytest.raises(ValueError, match="not to 1"):
        metrics.kl_divergence(np.array([np.nan, 0.0]), np.array([-np.inf, 0.0]))
    with pytest.raises(ValueError, match="shapes"):
        metrics.js_divergence(P, Q[:2])


# ---------------------------------------------------------------- weights


def test_ess_by_hand() -> None:
    assert metrics.effective_sample_size(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert metrics.effective_sample_size(np.full(7, -800.0)) == pytest.approx(7)
    assert metrics.effective_sample_size([-np.inf, 0.0, -np.inf]) == pytest.approx(1)
    assert metrics.effective_sample_size([-np.inf, -np.inf]) == 0.0
    assert metrics.ess_fraction(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 18)


def test_ess_fraction_tends_to_the_exact_one(toy: tuple[np.ndarray, np.ndarray, float]) -> None:
    log_reward, log_q, log_z = toy
    picked = draws(log_q, 200_000, seed=1)
    exact = metrics.exact_ess_fraction(log_reward - log_z, log_q)
    assert metrics.ess_fraction((log_reward - log_q)[picked]) == pytest.approx(exact, rel=0.05)
    assert metrics.exact_ess_fraction(P, Q) == pytest.approx(1 / (0.25 / 0.2 + 0.3 + 0.04 / 0.5))
    assert metrics.exact_ess_fraction(P, np.array([-np.inf, math.log(0.5), math.log(0.5)])) == 0.0


def test_log_z_by_hand_far_from_zero() -> None:
    found = metrics.log_z_estimate(np.log([1.0, 3.0]) - 1000)
    assert found.value == pytest.approx(math.log(2) - 1000)
    # weights over their mean: ½, 3/2; sd = 1/√2; over √2.
    assert found.standard_error == pytest.approx(0.5)


def test_log_z_without_weight_or_spread() -> None:
    nothing = metrics.log_z_estimate([-np.inf, -np.inf])
    assert nothing.value == -math.inf and math.isnan(nothing.standard_error)
    assert math.isnan(metrics.log_z_estimate([1.0]).standard_error)


def test_log_z_covers_the_truth_as_often_as_its_error_says(
    toy: tuple[np.ndarray, np.ndarray, float],
) -> None:
    log_reward, log_q, log_z = toy
    log_weights = log_reward - log_q
    hits = 0
    for seed in range(200):
        found = metrics.log_z_estimate(log_weights[draws(log_q, 4000, seed)])
        hits += abs(found.value - log_z) < 1.96 * found.standard_error
    assert 0.85 <= hits / 200 <= 0.99


# ---------------------------------------------------------------- bounds


def test_bounds_by_hand() -> None:
    log_weights = np.log([1.0, 3.0, 2.0, 2.0, 9.0])
    elbo = metrics.log_z_lower_bound(log_weights)
    assert elbo.value == pytest.approx(np.log([1.0, 3.0, 2.0, 2.0, 9.0]).mean())
    pairs = metrics.log_z_lower_bound(log_weights, particles=2)
    assert pairs.value == pytest.approx(math.log(2)) and pairs.standard_error == pytest.approx(0)
    eubo = metrics.log_z_upper_bound(np.log([2.0, 8.0]))
    assert eubo.value == pytest.approx(math.log(4))
    assert eubo.standard_error == pytest.approx(math.log(2))  # sd of ±log 2 is √2 log 2, over √2
    mixed = metrics.log_z_upper_bound(np.log([5.0, 7.0]), np.log([1.0, 1.0]), particles=2)
    assert mixed.value == pytest.approx(0.5 * (math.log(3) + math.log(4)))


def test_bounds_bracket_the_truth_and_tighten(toy: tuple[np.ndarray, np.ndarray, float]) -> None:
    log_reward, log_q, log_z = toy
    log_sigma, log_weights = log_reward - log_z, log_reward - log_q
    ours = log_weights[draws(log_q, 80_000, seed=1)]
    exact = log_weights[draws(log_sigma, 8_000, seed=2)]
    lower = [metrics.log_z_lower_bound(ours, k) for k in (1, 4, 16)]
    upper = [metrics.log_z_upper_bound(exact[: 80_000 // k], ours, k) for k in (1, 4, 10)]
    assert lower[0].value < lower[1].value < lower[2].value < log_z
    assert upper[0].value > upper[1].value > upper[2].value > log_z
    # K = 1: the gaps are the two divergences.
    elbo_gap = log_z - lower[0].value - metrics.kl_divergence(log_q, log_sigma)
    eubo_gap = upper[0].value - log_z - metrics.kl_divergence(log_sigma, log_q)
    assert abs(elbo_gap) < 4 * lower[0].standard_error
    assert abs(eubo_gap) < 4 * upper[0].standard_error


def test_bounds_refuse_too_few_draws() -> None:
    with pytest.raises(ValueError, match="blocks of 4"):
        metrics.log_z_lower_bound([0.0, 1.0], particles=4)
    with pytest.raises(ValueError, match="need 4 draws from q, not 3"):
        metrics.log_z_upper_bound([0.0, 1.0], [0.0, 1.0, 2.0], particles=3)


def test_a_string_of_zero_reward_makes_the_elbo_infinite_but_not_iwae() -> None:
    log_weights = [-np.inf, 0.0]
    assert metrics.log_z_lower_bound(log_weights).value == -math.inf
    assert metrics.log_z_lower_bound(log_weights, particles=2).value == pytest.approx(-math.log(2))


# ---------------------------------------------------------------- Pareto k


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_recovers_the_shape_of_a_pareto_tail(shape: float) -> None:
    fits = []
    for seed in range(10):
        weights = stats.genpareto(shape).rvs(20_000, random_state=seed)
        fits.append(metrics.pareto_k(np.log(weights) - 500))
    assert np.mean(fits) == pytest.approx(shape, abs=0.06)


def test_zhang_stephens_is_as_good_as_maximum_likelihood() -> None:
    """The fit's estimator alone, against scipy's maximum likelihood on the same draws."""
    excesses = np.sort(stats.genpareto(0.4).rvs(5_000, random_state=3))
    ours = metrics._generalised_pareto_shape(excesses)
    assert ours == pytest.approx(stats.genpareto.fit(excesses, floc=0)[0], abs=0.02)


def test_pareto_k_separates_good_from_bad_proposals() -> None:
    z = np.random.default_rng(0).normal(size=20_000)
    good = stats.norm(0, 0.8).logpdf(z) - stats.norm(0, 1).logpdf(z)
    bad = stats.norm(0, 3).logpdf(z) - stats.norm(0, 1).logpdf(z)
    assert metrics.pareto_k(good) < 0.5
    assert metrics.pareto_k(bad) > 0.7


def test_pareto_k_where_there_is_no_tail_to_fit() -> None:
    assert math.isnan(metrics.pareto_k(np.arange(20.0)))
    assert metrics.pareto_k(np.zeros(1000)) == 0.0
    assert metrics.pareto_k(np.full(1000, -np.inf)) == 0.0
    lone = np.zeros(1000)
    lone[:3] = 20.0
    assert metrics.pareto_k(lone) == math.inf


def test_pareto_k_shrinks_towards_a_half() -> None:
    uniform = np.log(np.linspace(0.1, 1, 100))  # a bounded tail: k well below 0
    tail = np.exp(np.sort(uniform))[-20:] - np.exp(np.sort(uniform))[-21]
    raw = metrics._generalised_pareto_shape(tail)
    assert raw < -0.3
    assert metrics.pareto_k(uniform) == pytest.approx((20 * raw + 5) / 30)


@given(st.lists(st.floats(-700, 700), min_size=25, max_size=200), st.floats(-1000, 1000))
def test_diagnostics_do_not_depend_on_the_scale_of_rewards(
    values: list[float], shift: float
) -> None:
    array = np.asarray(values)
    assert metrics.ess_fraction(array + shift) == pytest.approx(
        metrics.ess_fraction(array), rel=1e-6
    )
    moved = metrics.log_z_estimate(array + shift).value
    assert moved == pytest.approx(metrics.log_z_estimate(array).value + shift, abs=1e-6)


@given(st.lists(st.floats(-800, 800), min_size=25, max_size=300))
def test_pareto_k_is_a_number(values: list[float]) -> None:
    assert not math.isnan(metrics.pareto_k(np.asarray(values)))


# ---------------------------------------------------------------- samples


def test_unique_fraction_by_hand() -> None:
    assert metrics.unique_fraction([[1, 2], [1], [1, 2], []]) == pytest.approx(0.75)
    with pytest.raises(ValueError):
        metrics.unique_fraction([])


def test_weighted_marginal_by_hand() -> None:
    found = metrics.weighted_marginal([0, 1, 1], np.log([2.0, 1.0, 1.0]), size=3)
    assert found.probabilities.tolist() == pytest.approx([0.5, 0.5, 0])
    # Σ w̃² (1 − ½)² over weights ½, ¼, ¼ = (¼ + 2/16)/4
    assert found.standard_errors.tolist() == pytest.approx([math.sqrt(0.375 / 4)] * 2 + [0])
    plain = metrics.weighted_marginal([0, 0, 0, 1], np.zeros(4), size=2)
    assert plain.standard_errors[1] == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_weights_repair_a_wrong_sampler(toy: tuple[np.ndarray, np.ndarray, float]) -> None:
    log_reward, log_q, log_z = toy
    exact = np.bincount(np.arange(40) % 5, np.exp(log_reward - log_z))
    picked = draws(log_q, 20_000, seed=9)
    weighted = metrics.weighted_marginal(picked % 5, (log_reward - log_q)[picked], 5)
    plain = metrics.weighted_marginal(picked % 5, np.zeros(len(picked)), 5)
    assert (np.abs(weighted.probabilities - exact) < 4 * weighted.standard_errors).all()
    assert metrics.marginal_error(weighted.probabilities, exact) < 0.2 * metrics.marginal_error(
        plain.probabilities, exact
    )


def test_marginal_error_by_hand_and_bad_values_refused() -> None:
    assert metrics.marginal_error([0.5, 0.5, 0.0], [0.2, 0.5, 0.3]) == pytest.approx(0.3)
    with pytest.raises(ValueError):
        metrics.marginal_error([1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        metrics.weighted_marginal([0, 2], np.zeros(2), size=2)
    with pytest.raises(ValueError, match="NaN"):
        metrics.log_z_estimate([0.0, np.nan])
