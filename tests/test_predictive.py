"""The posterior predictive against enumeration of every Z on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from posteriori import metrics
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import ExactPosterior, enumerate_posterior, exact_log_q
from posteriori.predictive import answer_scores, from_answers, from_scores, predict
from posteriori.problems import Problem, build_problem

LABELS = [" happy", " sad", " big"]
NOMINAL_CHI = 1.96


@pytest.fixture(scope="module")
def problem(tiny_lm: LanguageModel) -> Problem:
    return build_problem(
        ProblemConfig.model_validate(
            {
                "name": "why",
                "kind": "infilling",
                "prompts": [{"x": " the cat", "y": LABELS[0]}],
                "policy_prompt": "{x}",
                "alphabet": [" sat", " ran", " and", " slept"],
                "stop": ".",
                "max_tokens": 3,
            }
        ),
        tiny_lm,
    )


@pytest.fixture(scope="module")
def posteriors(problem: Problem) -> list[ExactPosterior]:
    """p(z, y | x) of every z for each label y of the first X."""
    found = []
    for label in LABELS:
        prompt = type(problem.prompts[0])("x", {**problem.prompts[0].fields, "y": label})
        moves = problem.moves(problem.prompts[0])
        found.append(enumerate_posterior("why", prompt, moves, problem.reward, 1000))
    return found


@pytest.fixture(scope="module")
def strings(posteriors: list[ExactPosterior]) -> list[list[int]]:
    return [list(posteriors[0].tree.tokens(k)) for k in range(posteriors[0].count)]


@pytest.fixture(scope="module")
def log_q(problem: Problem, tiny_lm: LanguageModel, posteriors: list[ExactPosterior]) -> np.ndarray:
    """A sampler that is neither prior nor posterior: the base LM over the legal moves."""
    return exact_log_q(posteriors[0].tree, tiny_lm, problem.policy_ids(problem.prompts[0]))


def test_bayes_average_is_the_ratio_of_partition_functions(
    problem: Problem,
    tiny_lm: LanguageModel,
    posteriors: list[ExactPosterior],
    strings: list[list[int]],
    log_q: np.ndarray,
) -> None:
    """p(y | x) = Z(x, y) / Σ Z(x, y′), here with every string once: a uniform sampler."""
    log_z = np.array([p.log_z for p in posteriors])
    exact = np.exp(log_z - metrics.log_sum_exp(log_z))
    every = predict(
        problem, tiny_lm, problem.prompts[0], strings, LABELS,
        rule="bayes", log_q=np.full(len(strings), -np.log(len(strings))),
    )  # fmt: skip
    assert every.probabilities == pytest.approx(exact, rel=1e-4)
    drawn = np.random.default_rng(0).choice(len(strings), 4000, p=np.exp(log_q))
    sampled = predict(
        problem, tiny_lm, problem.prompts[0], [strings[k] for k in drawn], LABELS,
        rule="bayes", log_q=log_q[drawn],
    )  # fmt: skip
    assert np.abs(sampled.probabilities - exact).max() < 4 * sampled.standard_errors.max()
    assert sampled.standard_errors.max() < 0.05


def test_mean_rule_averages_what_each_chain_says(
    problem: Problem,
    tiny_lm: LanguageModel,
    posteriors: list[ExactPosterior],
    strings: list[list[int]],
    log_q: np.ndarray,
) -> None:
    """Σ q(z) p(y | x, z) with p restricted to the labels, by the joint likelihoods of the oracle."""
    joint = np.stack([p.log_reward for p in posteriors], axis=1)
    given_z = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    exact = np.exp(log_q) @ given_z
    scores = answer_scores(problem, tiny_lm, problem.prompts[0], strings, LABELS)
    assert from_scores(LABELS, scores, log_q).probabilities == pytest.approx(exact, rel=1e-4)
    drawn = np.random.default_rng(1).choice(len(strings), 2000, p=np.exp(log_q))
    chains = [strings[k] for k in drawn]
    found = predict(problem, tiny_lm, problem.prompts[0], chains, LABELS)
    assert np.abs(found.probabilities - exact).max() < 4 * found.standard_errors.max()
    votes = predict(problem, tiny_lm, problem.prompts[0], chains, LABELS, rule="vote")
    favourite = given_z.argmax(axis=1)[drawn]
    for k, label in enumerate(LABELS):
        share = dict(zip(votes.answers, votes.probabilities, strict=True)).get(label, 0.0)
        assert share == pytest.approx((favourite == k).mean())
    assert votes.within_entropy == 0.0


@pytest.mark.parametrize("weighted", [False, True])
def test_standard_errors_cover_the_truth(weighted: bool) -> None:
    """Nominal 95 % intervals of 250 trials; the bound is four binomial deviations below."""
    random = np.random.default_rng(2)
    sigma = random.dirichlet(np.ones(40))
    q = 0.5 * sigma + 0.5 / 40 if weighted else sigma
    given_z = random.dirichlet(np.full(3, 0.5), size=40)
    exact = sigma @ given_z
    trials, covered = 250, 0
    for _ in range(trials):
        drawn = random.choice(40, 300, p=q)
        log_weights = np.log(sigma[drawn] / q[drawn])
        found = from_scores("abc", np.log(given_z[drawn]), log_weights)
        error = np.abs(found.probabilities - exact)
        covered += int((error <= NOMINAL_CHI * found.standard_errors).sum())
    rate = covered / (3 * trials)
    assert 0.95 - 4 * (0.05 * 0.95 / trials) ** 0.5 < rate < 0.99


def test_entropy_splits_into_within_and_between() -> None:
    certain = np.log([[1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]])
    split = from_scores("ab", certain)
    assert split.entropy == pytest.approx(np.log(2))
    assert split.mutual_information == pytest.approx(np.log(2), abs=1e-9)
    unsure = from_scores("ab", np.log(np.full((5, 2), 0.3)))
    assert unsure.within_entropy == pytest.approx(np.log(2))
    assert unsure.mutual_information == pytest.approx(0.0, abs=1e-12)
    assert (unsure.standard_errors == 0).all()
    random = np.random.default_rng(3)
    some = from_scores("abcd", np.log(random.dirichlet(np.ones(4), 50)), random.normal(size=50))
    assert some.entropy == pytest.approx(some.within_entropy + some.mutual_information)
    assert 0 < some.mutual_information < some.entropy < np.log(4)


def test_chains_without_an_answer_are_counted_apart() -> None:
    votes = from_answers(["-1", None, "7", "7", None], np.log([1, 2, 1, 2, 4]))
    assert votes.answers == ("7", "-1") and votes.best == "7"
    assert votes.probabilities == pytest.approx([0.75, 0.25])
    assert (votes.chains, votes.unanswered) == (5, 2)
    assert votes.unanswered_share == pytest.approx(0.6)
    nothing = from_answers([None, None])
    assert nothing.best is None and nothing.unanswered_share == 1.0
    assert np.isnan(nothing.entropy)
    scored = from_scores("ab", [[-np.inf, -np.inf], [0.0, -np.inf]])
    assert (scored.best, scored.unanswered) == ("a", 1)


def test_joint_weights_discount_chains_that_would_say_something_else() -> None:
    log_p = np.log([[0.4, 0.4], [1e-6, 1e-9]])
    apart = from_scores("ab", log_p)
    together = from_scores("ab", log_p, jointly=True)
    assert apart.probabilities == pytest.approx([0.7495, 0.2505], abs=1e-3)
    assert together.probabilities == pytest.approx([0.5, 0.5], abs=1e-5)
    assert together.effective_chains == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for answers, log_p, weights in (
        ("ab", np.zeros((3, 3)), None),
        ("aa", np.zeros((3, 2)), None),
        ("ab", np.full((3, 2), np.nan), None),
        ("ab", np.zeros((3, 2)), np.zeros(2)),
        ("ab", np.zeros((3, 2)), np.full(3, -np.inf)),
        ("ab", np.zeros((0, 2)), None),
    ):
        with pytest.raises(ValueError):
            from_scores(list(answers), log_p, weights)
    with pytest.raises(ValueError):
        from_answers([])
