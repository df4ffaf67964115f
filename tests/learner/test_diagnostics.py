"""The numbers of a step, and the comparison of engine and learner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.diagnostics import EngineCheck, case_name, step_metrics
from learner.gradients import StepLosses
from posteriori.config import LearnerConfig
from posteriori.groups import prepare
from posteriori.policy import Policy
from tests.learner.helpers import random_strings, tiny_problem, trajectory


@pytest.fixture
def problem(tiny_lm):
    return tiny_problem(tiny_lm)


@pytest.fixture
def policy(tiny_lm):
    return Policy(tiny_lm, LearnerConfig(lora_rank=8))


def on_policy(policy, problem, version, seed=0, count=6):
    """Trajectories whose stored log q is the policy's own, now."""
    prompt = problem.prompts[0]
    plain = [
        trajectory(problem, prompt, z, behaviour="policy", adapter_version=version)
        for z in random_strings(problem.moves(prompt), count, seed)
    ]
    with torch.no_grad():
        log_q, stop = (x.numpy() for x in policy.log_probs([prepare(plain, problem)]))
    return [
        replace(t, log_q=log_q[row, : len(t)], log_q_stop=stop[row, : len(t) + 1])
        for row, t in enumerate(plain)
    ]


def shake(policy, size):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size)


def test_engine_check_recomputes_under_the_published_weights(policy, problem):
    check, problems = EngineCheck(), {problem.name: problem}
    shake(policy, 0.05)
    check.remember(3, policy)
    samples = on_policy(policy, problem, version=3)
    shake(policy, 0.05)  # the learner goes on
    before = policy.adapter_files()
    assert check.compare(policy, [samples], problems)
    assert policy.adapter_files() == before
    decisions = sum(len(t) + int(np.isfinite(t.log_q_stop).sum()) for t in samples)
    assert check.tokens == decisions
    assert check.maximum_nats < 1e-5
    # Once for each version; unknown versions and other behaviours are not compared at all.
    assert not check.compare(policy, [samples], problems)
    check.remember(4, policy)
    others = [replace(t, adapter_version=v) for t, v in zip(samples, (9,) * 6, strict=True)]
    assert not check.compare(policy, [others], problems)
    tempered = [replace(t, adapter_version=4, behaviour="tempered") for t in samples]
    assert not check.compare(policy, [tempered], problems)


def test_engine_check_sees_an_engine_that_means_another_q(policy, problem):
    check, problems = EngineCheck(), {problem.name: problem}
    check.remember(1, policy)
    samples = on_policy(policy, problem, version=1)
    off = samples[1].log_q.copy()
    off[-1] += 0.25
    samples[1] = replace(samples[1], log_q=off)
    check.compare(policy, [samples], problems)
    assert check.maximum_nats == pytest.approx(0.25, abs=1e-5)
    assert check.mean_nats == pytest.approx(0.25 / check.tokens, abs=1e-5)


def test_engine_check_keeps_only_the_last_versions(policy, problem):
    check = EngineCheck()
    samples = on_policy(policy, problem, version=1)
    for version in (1, 2, 3, 4):
        check.remember(version, policy)
    assert not check.compare(policy, [samples], {problem.name: problem})


def test_step_metrics_by_hand(problem):
    prompt = problem.prompts[0]
    word = [int(t) for t in problem.moves(prompt).alphabet]

    def item(reward, log_q, behaviour="policy", version=4):
        return trajectory(
            problem, prompt, word[:1],
            behaviour=behaviour, adapter_version=version,
            log_q=np.asarray([log_q], np.float32),
            log_reward=np.asarray([0.0, reward], np.float32),
        )  # fmt: skip

    items = [item(-1.0, -1.0), item(-1.0, -2.0, version=2), item(-5.0, -1.0, "base", 0)]
    step = StepLosses(
        trajectories=items,
        group=np.zeros(3, dtype=np.int64),
        loss=np.asarray([1.0, 2.0, 6.0]),
        mean=np.asarray([0.0, 1.0, 5.0]),
        spread=np.asarray([0.5, 0.5, 2.0]),
        terminal=np.asarray([1.0, 1.0, 4.0]),
    )
    found = step_metrics(step, 5, {problem.name: problem})
    assert found["loss"] == 3.0
    assert found["flow_spread"] == 1.0
    assert found["variance"] == pytest.approx(2.0)
    assert found["staleness"] == 2.0  # (1 + 3) / 2; the base LM has no version
    weights = np.exp([0.0, 1.0])
    assert found["ess"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 2)
    assert found["log_z/tiny/0"] == pytest.approx(np.log(weights.mean()))
    assert case_name(replace(problem, prompts=problem.prompts[:1]), "0") == "tiny"


def test_steps_without_on_policy_samples_have_no_weights(problem):
    prompt = problem.prompts[0]
    items = [trajectory(problem, prompt, z) for z in random_strings(problem.moves(prompt), 3, 0)]
    zeros = np.zeros(3)
    step = StepLosses(items, np.zeros(3, dtype=np.int64), zeros, zeros, zeros, zeros)
    found = step_metrics(step, 5, {problem.name: problem})
    assert not {"ess", "staleness", "log_z/tiny/0"} & found.keys()
