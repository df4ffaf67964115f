"""Importance methods, search, local decoding and prompting against enumeration on the tiny model."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from baselines import importance, local, prompting, search
from baselines.draws import Draws
from baselines.methods import METHODS
from posteriori import metrics
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import exact_log_q
from posteriori.problems import Problem
from tests.small import KINDS, build, chi_square_p, exact, string_index
from tests.tools.problem import parrot_problem


def weighted_tv(problem: Problem, draws: Draws) -> float:
    posterior = exact(problem)
    index = string_index(posterior)
    values = [index[tuple(z)] for z in draws.tokens]
    found = metrics.weighted_marginal(values, draws.log_weights, posterior.count)
    return metrics.marginal_error(found.probabilities, np.exp(posterior.log_sigma))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["infilling", "constrained"])
def test_every_method_gives_legal_scored_samples(
    soft_lm: LanguageModel, name: str, kind: str
) -> None:
    """Shapes, legality, log R, reproducibility and a budget, of every method under one signature."""
    problem = build(soft_lm, **KINDS[kind], max_tokens=3)
    posterior, prompt = exact(problem), problem.prompts[0]
    options = {"rejection": {"log_bound": 30.0, "max_proposals": 10}, "mcmc": {"steps": 3}}
    method = METHODS[name]
    if name == "rejection":
        with pytest.raises(UserError, match="kept 0 of 10 proposals"):
            method(problem, prompt, 5, 1, **options[name])
        return
    draws = method(problem, prompt, 5, 1, **options.get(name, {}))
    again = method(problem, prompt, 5, 1, **options.get(name, {}))
    index = string_index(posterior)
    assert 1 <= len(draws) <= 5
    assert draws.tokens == again.tokens
    places = [index[tuple(z)] for z in draws.tokens]  # KeyError: an illegal Z
    np.testing.assert_allclose(draws.log_reward, posterior.log_reward[places], atol=1e-4)
    assert draws.log_q.shape == draws.log_weights.shape == (len(draws),)
    assert np.isfinite(draws.log_weights).all() and draws.weights.sum() == pytest.approx(1)
    assert draws.budget.token_forwards > 0
    assert list(inspect.signature(method).parameters)[:4] == ["problem", "prompt", "n", "seed"]


def test_weighted_draws_of_the_base_lm(soft_lm: LanguageModel) -> None:
    """SNIS: exact log q, log Ẑ within its error, and weights that bring the TV down."""
    problem = build(soft_lm, **KINDS["infilling"])
    posterior, prompt = exact(problem), problem.prompts[0]
    draws = importance.snis(problem, prompt, 2000, 0)
    log_q = exact_log_q(posterior.tree, soft_lm, problem.policy_ids(prompt))
    index = string_index(posterior)
    np.testing.assert_allclose(
        draws.log_q, log_q[[index[tuple(z)] for z in draws.tokens]], atol=1e-4
    )
    assert draws.log_z is not None
    assert abs(draws.log_z.value - posterior.log_z) < 4 * draws.log_z.standard_error
    assert weighted_tv(problem, draws) < 0.3
    assert weighted_tv(problem, local.sample(problem, prompt, 2000, 0)) > 0.5
    assert draws.budget.reward_evaluations == len({tuple(z) for z in draws.tokens})


def test_resampling_nears_the_posterior_and_best_of_n_its_mode(soft_lm: LanguageModel) -> None:
    problem = build(soft_lm, **KINDS["constrained"], max_tokens=3)
    posterior, prompt = exact(problem), problem.prompts[0]
    tv = [
        weighted_tv(problem, importance.sir(problem, prompt, 150, 0, candidates=candidates))
        for candidates in (1, 4, 32)
    ]
    assert tv == sorted(tv, reverse=True) and tv[-1] < tv[0] / 2
    best = importance.best_of_n(problem, prompt, 20, 0, candidates=64)
    mode = posterior.tree.tokens(int(posterior.top(1)[0]))
    assert sum(z == mode for z in best.tokens) > 10


def test_rejection_is_exact_and_its_bound_is_checked(soft_lm: LanguageModel) -> None:
    """R = p(z⊤) ≤ q, so 0 bounds log R/q; the least bound gives the same samples sooner."""
    problem = build(soft_lm, max_tokens=3)
    posterior, prompt = exact(problem), problem.prompts[0]
    log_q = exact_log_q(posterior.tree, soft_lm, problem.policy_ids(prompt))
    bound = float((posterior.log_reward - log_q).max())
    assert bound < 0
    draws = importance.rejection(problem, prompt, 200, 3, log_bound=bound)
    assert chi_square_p(posterior, draws.tokens) > 1e-3
    assert chi_square_p(posterior, local.sample(problem, prompt, 200, 3).tokens) < 1e-3
    assert draws.log_z is not None
    assert abs(draws.log_z.value - posterior.log_z) < 4 * draws.log_z.standard_error
    with pytest.raises(UserError, match="above the bound"):
        importance.rejection(problem, prompt, 200, 3, log_bound=bound - 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_beam_finds_the_most_probable_strings(soft_lm: LanguageModel, kind: str) -> None:
    """A beam that holds every prefix is exhaustive; a beam of one is greedy decoding."""
    problem = build(soft_lm, **KINDS[kind], max_tokens=3)
    prompt = problem.prompts[0]
    posterior = exact(problem)
    log_q = exact_log_q(posterior.tree, soft_lm, problem.policy_ids(prompt))
    best = [posterior.tree.tokens(int(k)) for k in np.argsort(-log_q)[:5]]
    assert search.beam(problem, prompt, 5, 0, times=20).tokens == best
    one = search.beam(problem, prompt, 1, 0)
    greedy = local.greedy(problem, prompt, 2, 0)
    # A beam of one goes on past a finished Z as long as it could still do better.
    assert greedy.tokens[0] == greedy.tokens[1]
    index = string_index(posterior)
    assert log_q[index[tuple(one.tokens[0])]] >= log_q[index[tuple(greedy.tokens[0])]] - 1e-5


def test_diverse_beams_differ_more(soft_lm: LanguageModel) -> None:
    """Groups that are charged for each other's tokens begin differently; without a penalty they agree."""
    problem = build(soft_lm, min_tokens=3)
    prompt = problem.prompts[0]
    same = search.diverse_beam(problem, prompt, 4, 0, penalty=0.0)
    diverse = search.diverse_beam(problem, prompt, 4, 0, penalty=50.0)
    assert len({tuple(z) for z in same.tokens}) == 1
    assert len({z[0] for z in diverse.tokens}) == 4
    wide = search.diverse_beam(problem, prompt, 4, 0, times=5)
    assert wide.log_reward.max() >= diverse.log_reward.max() - 1e-6


def test_prompts_are_built_from_templates(soft_lm: LanguageModel) -> None:
    shots = [{"x": " a", "z": " b", "y": " c"}, {"x": " d", "z": " e", "y": " f"}]
    fields = {"x": " the cat"}
    assert prompting.zero_shot("{x}", "Go on.").fill(fields) == "Go on.\n the cat"
    assert prompting.few_shot("Q:{x} A:").fill(fields, shots) == (
        "Q: a A: b\nQ: d A: e\nQ: the cat A:"
    )
    cot = prompting.chain_of_thought("{x} so", answer=" thus{y}")
    assert cot.fill(fields, shots[:1]) == " a so b thus c\n the cat so"
    with pytest.raises(UserError, match=r"uses \{y\}"):
        prompting.few_shot("{y}").fill(fields, shots)
    with pytest.raises(UserError, match="0 examples"):
        prompting.few_shot("{x}").fill(fields)
    problem = build(soft_lm)
    template = prompting.PromptTemplate(query=" the{x}", shot="{x}{z}", separator="")
    examples = [{"x": " a dog", "z": " sat"}]
    draws = prompting.sample(
        problem, problem.prompts[0], 300, 0, template=template, examples=examples
    )
    ids = soft_lm.context(" a dog sat the the cat")
    posterior = exact(problem)
    log_q = exact_log_q(posterior.tree, soft_lm, ids)
    index = string_index(posterior)
    np.testing.assert_allclose(
        draws.log_q, log_q[[index[tuple(z)] for z in draws.tokens]], atol=1e-4
    )
    with pytest.raises(UserError, match="context"):
        prompting.sample(
            problem, problem.prompts[0], 1, 0, template=template, examples=examples * 60
        )


@pytest.mark.parametrize("name", ["mcmc", "beam", "diverse-beam", "greedy"])
def test_methods_that_cannot_read_tool_outputs_say_so(soft_lm: LanguageModel, name: str) -> None:
    problem = parrot_problem(soft_lm, 1, 3)
    with pytest.raises(UserError, match="tool"):
        METHODS[name](problem, problem.prompts[0], 2, 0)
