"""SFT against a naive loop, and towards the posterior where its data are posterior samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baselines.sft import SFTSettings, sequence_log_q, train_sft
from baselines.trained import given, packed, rollouts
from posteriori import metrics
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.oracle.scoring import sequence_log_q as scored
from posteriori.policy import Policy
from tests.learner.helpers import random_strings, tiny_problem
from tests.tools.problem import parrot_problem


def test_loss_is_minus_the_log_likelihood_of_all_moves(tiny_lm: LanguageModel) -> None:
    """Before the first step q is the base LM, whose log q is known from plain scoring."""
    problem = tiny_problem(tiny_lm)
    pairs = [
        given(problem, prompt, z)
        for prompt in problem.prompts
        for z in random_strings(problem.moves(prompt), 6, seed=3)
    ]
    expected = np.mean(
        [
            scored(tiny_lm, problem.policy_ids(prompt), problem.moves(prompt), [z.tokens])[0]
            for prompt in problem.prompts
            for z in pairs
            if z.prompt == prompt.id
        ]
    )
    small = SFTSettings(steps=1, lora_rank=8, batch_size=100, tokens_per_microbatch=64)
    trained = train_sft([problem], pairs, small)
    assert trained.curve[0]["loss"] == pytest.approx(-expected, rel=1e-5)


def test_posterior_samples_make_the_posterior(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    """TV to the enumerated posterior falls to the noise of 4,000 samples; the saved adapter has it."""
    problem = tiny_problem(tiny_lm, max_tokens=2)
    problem = replace(problem, prompts=problem.prompts[:1])
    prompt = problem.prompts[0]
    exact = enumerate_posterior("tiny", prompt, problem.moves(prompt), problem.reward, 1000)
    pairs = [given(problem, prompt, exact.tree.tokens(int(k))) for k in exact.sample(4000, seed=0)]
    settings = SFTSettings(steps=80, batch_size=256, learning_rate=1e-2, lora_rank=8)
    trained = train_sft([problem], pairs, settings, seed=1)

    def distance(lm: LanguageModel) -> float:
        log_q = exact_log_q(exact.tree, lm, problem.policy_ids(prompt))
        return metrics.total_variation(exact.log_sigma, log_q)

    assert distance(tiny_lm) > 0.3
    assert distance(trained.language_model()) < 0.06
    trained.save(tmp_path / "adapter")
    assert distance(tiny_lm.with_adapter(tmp_path / "adapter")) < 0.06
    assert trained.budget.reward_evaluations == 0
    assert trained.budget.token_forwards > 0


def test_gradient_reaches_the_adapter_alone(tiny_lm: LanguageModel) -> None:
    problem = tiny_problem(tiny_lm)
    pairs = [given(problem, problem.prompts[0], problem.moves(problem.prompts[0]).alphabet[:2])]
    policy = train_sft([problem], pairs, SFTSettings(steps=1, lora_rank=8)).policy
    sequence_log_q(policy, packed(pairs, {"tiny": problem})).sum().backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert all(p.grad is None for p in tiny_lm.model.parameters())


def test_pairs_that_are_none_are_refused(tiny_lm: LanguageModel) -> None:
    problem = tiny_problem(tiny_lm, min_tokens=2)
    prompt = problem.prompts[0]
    with pytest.raises(UserError, match="was given no"):
        train_sft([problem], [])
    with pytest.raises(ValueError, match="may not end"):
        given(problem, prompt, problem.moves(prompt).alphabet[:1])
    with pytest.raises(ValueError, match="not in the alphabet"):
        given(problem, prompt, [1, 1])


def test_tool_outputs_are_context_and_no_targets(tiny_lm: LanguageModel) -> None:
    """log q of a Z with tool outputs is that of its moves alone, in SFT as in on-policy rollouts."""
    problem = parrot_problem(tiny_lm, min_tokens=1, max_tokens=4)
    prompt = problem.prompts[0]
    policy = Policy(tiny_lm, SFTSettings(lora_rank=8), 0)
    drawn = rollouts(policy, problem, prompt, 40, seed=0)
    spoken = [z for z in drawn if not z.action.all()]
    assert spoken and all((z.log_q[~z.action] == 0).all() for z in spoken)
    groups = packed(drawn, {"parrot": problem})
    expected = [z.log_q.sum() + z.log_q_stop[-1] for z in groups[0].trajectories]
    found = sequence_log_q(policy, groups).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    again = given(problem, prompt, spoken[0].tokens)
    np.testing.assert_array_equal(again.action, spoken[0].action)
