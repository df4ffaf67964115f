"""Twisted SMC against enumeration: unbiased Ẑ, exact samples as particles grow."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from posteriori import metrics, smc
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import exact_log_q
from posteriori.problems import Problem
from tests.small import KINDS, build, exact, string_index
from tests.tools.problem import parrot_problem

RUNS = 400


@pytest.fixture(scope="module")
def perturbed(soft_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The tiny model with noise in a LoRA adapter: a policy that is right nowhere."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    peft = get_peft_model(
        copy.deepcopy(soft_lm.model), LoraConfig(r=4, target_modules="all-linear")
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    directory: Path = tmp_path_factory.mktemp("perturbed")
    peft.save_pretrained(directory)
    return soft_lm.with_adapter(directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("twist", [smc.FLOW, smc.likelihood_twist(2.0)])
def test_z_is_unbiased_for_the_base_lm(soft_lm: LanguageModel, kind: str, twist: smc.Twist) -> None:
    check_unbiased(build(soft_lm, **KINDS[kind]), soft_lm, twist)


@pytest.mark.parametrize("kind", KINDS)
def test_z_is_unbiased_for_a_policy_that_is_wrong(
    soft_lm: LanguageModel, perturbed: LanguageModel, kind: str
) -> None:
    check_unbiased(build(soft_lm, **KINDS[kind]), perturbed, smc.FLOW)


def test_z_is_unbiased_where_a_tool_answers(soft_lm: LanguageModel) -> None:
    """Particles that read an answer fall behind the others, and are resampled with them all the same."""
    check_unbiased(parrot_problem(soft_lm, 1, 3, weight=2.0), soft_lm, smc.FLOW)


def check_unbiased(problem: Problem, proposal: LanguageModel, twist: smc.Twist) -> None:
    """mean(Ẑ/Z) = 1 within 3 standard errors, with resampling at work."""
    found = smc.sample(
        problem,
        problem.prompts[0],
        proposal,
        particles=4,
        runs=RUNS,
        twist=twist,
        ess_threshold=0.8,
        seed=3,
    )
    ratios = np.exp(np.array([p.log_z for p in found.populations]) - exact(problem).log_z)
    error = ratios.std(ddof=1) / np.sqrt(RUNS)
    assert abs(ratios.mean() - 1) < 3 * error
    assert error < 0.3  # so that a factor of two would show
    assert sum(p.resamplings for p in found.populations) > RUNS / 4


def test_samples_approach_the_posterior_as_particles_grow(
    soft_lm: LanguageModel, perturbed: LanguageModel
) -> None:
    """TV of one draw from each of many runs falls with K, and below that of the proposal."""
    problem = build(soft_lm, **KINDS["constrained"])
    posterior = exact(problem)
    prompt = problem.prompts[0]
    log_q = exact_log_q(posterior.tree, perturbed, problem.policy_ids(prompt))
    index = string_index(posterior)
    tv = [metrics.total_variation(posterior.log_sigma, log_q)]
    for particles in (2, 8, 32):
        found = smc.sample(problem, prompt, perturbed, particles=particles, runs=200, seed=5)
        # Rao-Blackwellised: the mean over runs of the weights that a draw would follow.
        mass = np.zeros(posterior.count)
        for population in found.populations:
            weights = metrics.normalised_weights(population.log_weights)
            for tokens, weight in zip(population.tokens, weights, strict=True):
                mass[index[tuple(tokens)]] += weight / 200
        tv.append(metrics.marginal_error(mass, np.exp(posterior.log_sigma)))
    assert tv == sorted(tv, reverse=True)
    assert tv[-1] < tv[0] / 3


def test_a_perfect_policy_has_equal_weights(soft_lm: LanguageModel) -> None:
    """Where q is the posterior its flows are exact: every weight is Z = 1 and nothing is resampled."""
    problem = build(soft_lm, kind="product", terms=[{"renormalise": True}])
    found = smc.sample(problem, problem.prompts[0], soft_lm, particles=32, ess_threshold=1.0)
    (population,) = found.populations
    np.testing.assert_allclose(population.log_weights, 0.0, atol=1e-4)
    assert population.resamplings == 0
    assert found.token_forwards > 32 and found.reward_evaluations <= 4 * 64


def test_systematic_resampling_is_unbiased_and_even() -> None:
    weights = np.array([0.05, 0.4, 0.0, 0.55])
    counts = np.zeros(4)
    for uniform in (np.arange(1000) + 0.5) / 1000:
        children = np.bincount(smc.systematic(weights, uniform), minlength=4)
        assert (children >= np.floor(4 * weights)).all() and (
            children <= np.ceil(4 * weights)
        ).all()
        counts += children
    np.testing.assert_allclose(counts / 4000, weights, atol=1e-3)


def test_seed_and_arguments(soft_lm: LanguageModel) -> None:
    problem = build(soft_lm)
    prompt = problem.prompts[0]
    first, second, other = (
        smc.sample(problem, prompt, soft_lm, particles=8, seed=seed).populations[0]
        for seed in (0, 0, 1)
    )
    assert first.tokens == second.tokens != other.tokens
    assert first.pick(3, 0) == second.pick(3, 0)
    with pytest.raises(ValueError, match="particles"):
        smc.sample(problem, prompt, soft_lm, particles=0)
