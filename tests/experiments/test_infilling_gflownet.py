"""The GFlowNet of the infilling experiment: rewards of whole Z's, draws of known ones, and what it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.infilling.gflownet import GFlowNetSettings, Known, train_gflownet
from experiments.infilling.scoring import log_rewards
from experiments.infilling.stories import problem_config, split
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.problems import build_problem
from tests.learner.helpers import tiny_problem


def test_log_r_of_whole_middles_is_that_of_the_reward() -> None:
    pocket = LanguageModel.load("pocket")
    parts = split(0, 3, 0, 1)
    problem = build_problem(problem_config(parts.train, parts.test), pocket)
    prompt = problem.prompts[0]
    middles = [pocket.encode(story["middle"]) for story in parts.train]
    expected = [scores[-1] for scores in problem.reward.log_reward(prompt, middles)]
    np.testing.assert_allclose(log_rewards(problem, prompt, middles), expected, atol=1e-4)


def test_known_sequences_are_scored_once_and_drawn_by_reward(tiny_lm: LanguageModel) -> None:
    problem = tiny_problem(tiny_lm, max_tokens=2)
    prompt = problem.prompts[0]
    exact = enumerate_posterior(
        problem.name, prompt, problem.moves(prompt), problem.reward, max_strings=1000
    )
    sequences = [exact.tree.tokens(k) for k in range(exact.count)]
    known = Known(problem)
    first = known.add(prompt, [*sequences[:4], sequences[0]])
    assert first[0] == first[-1] and known.evaluations == 4
    np.testing.assert_allclose(known.add(prompt, sequences), exact.log_reward, atol=1e-5)
    assert known.evaluations == len(sequences)
    n = 20_000
    drawn = known.draw(prompt, n, np.random.default_rng(0))
    found = np.array([drawn.count(tuple(z)) / n for z in sequences])
    sigma = np.exp(exact.log_sigma)
    assert (np.abs(found - sigma) < 5 * np.sqrt(sigma / n)).all()


@pytest.mark.slow
def test_it_comes_to_the_posterior(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    """On new and old proposals alike, KL(σ‖q) falls to a tenth of the base LM's; gold is never looked at.

    Long enough for any seed, and so for any processor's rounding: four seeds end at 0.04 to 0.05 of it.
    """
    problem = replace(tiny_problem(tiny_lm, max_tokens=3), gold={})
    settings = GFlowNetSettings(
        steps=300, proposals=4, prompts_per_step=2, fresh=6, found=6, learning_rate=1e-2
    )
    rows: list[float] = []
    trained = train_gflownet(
        problem, tiny_lm, settings, tmp_path, 0, lambda policy, row: rows.append(row["loss"])
    )

    def divergence(lm: LanguageModel) -> float:
        found = []
        for prompt in problem.prompts:
            exact = enumerate_posterior(
                problem.name, prompt, problem.moves(prompt), problem.reward, max_strings=1000
            )
            log_q = exact_log_q(exact.tree, lm, problem.policy_ids(prompt))
            found.append(float(np.exp(exact.log_sigma) @ (exact.log_sigma - log_q)))
        return float(np.mean(found))

    assert divergence(trained.language_model()) < 0.1 * divergence(tiny_lm)
    assert len(rows) == settings.steps == len(trained.curve)
    assert 0 < trained.budget.reward_evaluations <= 2 * 155
    assert not list(tmp_path.iterdir())
