"""Laws of resampling, chains and filters against the baselines' own draws; what tokens count; the whole in little."""

from __future__ import annotations

import numpy as np
import pytest

from baselines import importance, mcmc
from benchmarks.instead.laws import FloatArray, Proposals, log_likelihoods, smallest
from posteriori import smc
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import ExactPosterior, exact_moves
from posteriori.problems import Problem
from tests.small import build, chi_square_p, exact

SMALL = {
    "kind": "infilling",
    "prompts": [{"x": " the cat", "y": " on the mat"}],
    "alphabet": [" dog", " sat", " ran"],
    "min_tokens": 1,
    "max_tokens": 3,
    "temperature": 0.3,
    "constraint": {"regex": "( dog| ran)*( sat| ran)+"},
}
DRAWS = 1500


@pytest.fixture(scope="module")
def problem(soft_lm: LanguageModel) -> Problem:
    return build(soft_lm, **SMALL)


@pytest.fixture(scope="module")
def proposals(problem: Problem) -> Proposals:
    posterior = exact(problem)
    ids = problem.policy_ids(problem.prompts[0])
    return Proposals(posterior, exact_moves(posterior.tree, problem.lm, ids))


def p_value(proposals: Proposals, law: FloatArray, tokens: list[list[int]]) -> float:
    """Of independent draws being from a law over the strings."""
    return chi_square_p(ExactPosterior(proposals.tree, np.log(law)), tokens)


def test_resampled_draws_have_their_law(problem: Problem, proposals: Proposals) -> None:
    """χ²; the law of another number of candidates fails the same test, and the limits are q and σ."""
    drawn = importance.sir(problem, problem.prompts[0], DRAWS, 0, candidates=3).tokens
    law = proposals.resampled(3)
    assert law.sum() == pytest.approx(1, abs=1e-6)
    assert p_value(proposals, law, drawn) > 1e-3
    assert p_value(proposals, proposals.resampled(1), drawn) < 1e-6
    np.testing.assert_allclose(proposals.resampled(1), np.exp(proposals.log_q), rtol=1e-6)
    assert proposals.distance(proposals.resampled(10_000)) < 1e-3


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_kernel_is_that_of_the_chains(
    problem: Problem, proposals: Proposals, share: float
) -> None:
    """It keeps σ, is in detailed balance with it, and its powers are the law of simulated chains."""
    kernel, sigma = proposals.kernel(share), np.exp(proposals.exact.log_sigma)
    np.testing.assert_allclose(kernel.sum(axis=1), 1)
    assert kernel.min() >= 0
    np.testing.assert_allclose(sigma[:, None] * kernel, (sigma[:, None] * kernel).T, atol=1e-12)
    start = np.exp(proposals.log_q)
    law = start @ kernel @ kernel
    drawn = mcmc.sample(problem, problem.prompts[0], DRAWS, 0, steps=2, infill_share=share).tokens
    assert p_value(proposals, law, drawn) > 1e-3
    assert p_value(proposals, start, drawn) < 1e-6
    distances = proposals.chain_distances(kernel, 200)
    assert distances[2] == pytest.approx(proposals.distance(law))
    assert distances[0] > 0.1 and distances[200] < 1e-3


def test_the_autocorrelation_time_is_that_of_a_simulated_chain(proposals: Proposals) -> None:
    """Squared error of the frequencies along many long chains, against that of as many exact draws."""
    kernel, sigma = proposals.kernel(0.3), np.exp(proposals.exact.log_sigma)
    rng, chains, length = np.random.default_rng(0), 400, 400
    cumulative = kernel.cumsum(axis=1)
    states = proposals.exact.sample(chains, seed=0)
    counts = np.zeros((chains, len(sigma)))
    for _ in range(length):
        counts[np.arange(chains), states] += 1
        uniform = rng.random(chains) * cumulative[states, -1]
        states = (cumulative[states] <= uniform[:, None]).sum(axis=1)
    error = ((counts / length - sigma) ** 2).sum(axis=1).mean()
    exact_error = (sigma * (1 - sigma)).sum() / length
    assert proposals.autocorrelation_time(kernel) == pytest.approx(error / exact_error, rel=0.15)
    assert proposals.autocorrelation_time(np.tile(sigma, (len(sigma), 1))) == pytest.approx(1)


@pytest.mark.parametrize("twist", ["flow", "likelihood"])
def test_filters_on_tables_draw_what_filters_of_the_model_draw(
    problem: Problem, proposals: Proposals, twist: str
) -> None:
    """χ² of one particle of each filter by weight, with the same scale of the twist."""
    prompt = problem.prompts[0]
    if twist == "flow":
        used, log_v = smc.FLOW, proposals.flow
    else:
        log_p = log_likelihoods(proposals.tree, problem.lm, problem.policy_ids(prompt))
        used, log_v = smc.likelihood_twist(), proposals.likelihood(log_p)
    found = smc.sample(
        problem,
        prompt,
        problem.lm,
        particles=4,
        runs=DRAWS,
        twist=used,
        ess_threshold=0.9,
        log_scale=float(log_v[0]),
        seed=0,
    )
    drawn = [one.pick(1, k)[0] for k, one in enumerate(found.populations)]
    weights = proposals.filtered(log_v, 4, 60_000, np.random.default_rng(0), 0.9)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    law = weights.mean(axis=0)
    assert p_value(proposals, law, drawn) > 1e-3
    assert (
        p_value(
            proposals,
            proposals.filtered(log_v, 1, 60_000, np.random.default_rng(1), 0.9).mean(axis=0),
            drawn,
        )
        < 1e-6
    )
    many = proposals.filtered(log_v, 512, 2000, np.random.default_rng(0), 0.9).mean(axis=0)
    assert proposals.distance(many) < 0.02


def test_the_smallest_size_is_found() -> None:
    assert [smallest(lambda k: 1 / k, bound, 100) for bound in (1, 0.5, 0.3, 0.01)] == [
        1,
        2,
        4,
        100,
    ]
    assert smallest(lambda k: 1 / k, 0.009, 100) is None
