"""Learner, scorer and transformers engine on a CUDA device give the numbers of the CPU.

Needs no vLLM, Ray or Redis: `pytest tests/gpu` on any machine with torch, transformers and peft.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.self_test import self_test
from actors.transformers_engine import TransformersEngine
from actors.weighted import draw
from learner.gradients import accumulate
from posteriori.config import LearnerConfig, ProblemConfig
from posteriori.groups import prepare
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q, fidelity
from posteriori.policy import Policy
from posteriori.problems import Problem, build_problem
from tests.learner.helpers import random_strings, trajectory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

DEVICE = "cuda"
PROBLEM = ProblemConfig(
    name="gpu",
    kind="tempered",
    prompts=({"x": " the big", "y": " then the bird ate."},),
    alphabet=(" cat", " dog", " ran", " slept", " and"),
    stop=".",
    max_tokens=4,
    temperature=0.7,
)


@pytest.fixture(scope="module")
def on_gpu(tiny_lm_path: Path) -> Problem:
    """The problem with its language model on the device."""
    return build_problem(PROBLEM, LanguageModel.load(str(tiny_lm_path), device=DEVICE))


@pytest.fixture(scope="module")
def on_cpu(tiny_lm: LanguageModel) -> Problem:
    """The same on the CPU."""
    return build_problem(PROBLEM, tiny_lm)


def test_prefix_rewards(on_gpu: Problem, on_cpu: Problem) -> None:
    infilling = PROBLEM.model_copy(update={"kind": "infilling"})
    ours, theirs = (build_problem(infilling, problem.lm) for problem in (on_gpu, on_cpu))
    prompt = ours.prompts[0]
    strings = random_strings(ours.moves(prompt), 64, seed=0)
    expectations = theirs.reward.log_reward(prompt, strings)
    for found, expected in zip(ours.reward.log_reward(prompt, strings), expectations, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_loss_and_gradient(on_gpu: Problem, on_cpu: Problem) -> None:
    settings = LearnerConfig(lora_rank=8)
    found = []
    for problem in (on_gpu, on_cpu):
        prompt = problem.prompts[0]
        policy = Policy(problem.lm, settings, seed=3)
        strings = random_strings(problem.moves(prompt), 32, seed=1)
        group = prepare(
            [trajectory(problem, prompt, z, reward_version=0) for z in strings], problem
        )
        step = accumulate(policy, [group], {problem.name: problem}, settings, 1.0, None)
        gradient = torch.cat(
            [p.grad.flatten().cpu() for p in policy.parameters() if p.grad is not None]
        )
        found.append((step.loss, gradient))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3)
    assert torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.9999


def test_engine(on_gpu: Problem, tiny_lm_path: Path) -> None:
    prompt = on_gpu.prompts[0]
    moves = on_gpu.moves(prompt)
    engine = TransformersEngine(tiny_lm_path, lora_rank=8, max_model_tokens=64, device=DEVICE)
    self_test(engine, on_gpu.lm.model, on_gpu.policy_ids(prompt), moves, rank=8, dtype="float32")
    samples = draw(engine, on_gpu, prompt, 4096, adapter_version=0, seed=0)
    exact = enumerate_posterior("gpu", prompt, moves, on_gpu.reward, 10_000)
    log_q = exact_log_q(exact.tree, on_gpu.lm, on_gpu.policy_ids(prompt))
    expected = [log_q[exact.tree.index(z)] for z in samples.tokens[:200]]
    np.testing.assert_allclose(samples.log_q[:200], expected, atol=1e-3)
    weights = np.exp(samples.log_weights - exact.log_z)
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(len(weights))


def test_training_reaches_the_posterior(on_gpu: Problem) -> None:
    prompt = on_gpu.prompts[0]
    exact = enumerate_posterior("gpu", prompt, on_gpu.moves(prompt), on_gpu.reward, 10_000)
    settings = LearnerConfig(lora_rank=8, learning_rate=0.01)
    policy = Policy(on_gpu.lm, settings, seed=0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)

    def distance() -> float:
        log_q = exact_log_q(exact.tree, policy.language_model(), on_gpu.policy_ids(prompt))
        return fidelity(exact, log_q).total_variation

    before = distance()
    everything = [
        trajectory(on_gpu, prompt, exact.tree.tokens(k), reward_version=0)
        for k in range(exact.count)
    ]
    random = np.random.default_rng(0)
    for step in range(300):
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.learning_rate * (1 - step / 300)
        chosen = random.choice(exact.count, 64, p=np.exp(exact.log_sigma) * 0.5 + 0.5 / exact.count)
        group = prepare([everything[int(k)] for k in chosen], on_gpu)
        optimizer.zero_grad()
        accumulate(policy, [group], {on_gpu.name: on_gpu}, settings, 1.0, None)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    assert before > 0.3
    assert distance() < 0.05
