"""bfloat16, recomputed and compiled layers: what they may change, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from learner.gradients import accumulate
from learner.layers import run_layers_as_told
from learner.learner import Learner
from posteriori.groups import prepare
from posteriori.policy import ADAPTER_WEIGHTS, Policy
from replay.memory_adapters import MemoryAdapters
from tests.learner.helpers import ScriptedBuffer, random_draws, run_config, tiny_problem

BFLOAT16_NATS = 0.3
"""Of log q of a whole Z of up to six moves: bfloat16 keeps 8 bits, and logits here reach 10 (measured: 0.15)."""


def gradient(lm, **options):
    """Losses and gradients of one step of a policy that is not the base LM any more."""
    settings = run_config(lm, **options).learner
    problem = tiny_problem(lm)
    policy = Policy(lm, settings, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    run_layers_as_told(policy, settings)
    [draws] = random_draws(problem, 1)
    groups = [prepare(group, problem) for group in draws]
    losses = accumulate(policy, groups, {problem.name: problem}, settings, 1.0, None)
    return losses, [parameter.grad for parameter in policy.parameters()], policy


def test_recomputed_layers_give_the_same_gradient(tiny_lm):
    plain, gradients, _ = gradient(tiny_lm)
    losses, again, policy = gradient(tiny_lm, activation_checkpointing=True)
    np.testing.assert_array_equal(losses.loss, plain.loss)
    for ours, theirs in zip(again, gradients, strict=True):
        assert torch.equal(ours, theirs)
    # Not switched off by evaluation mode, which keeps dropout out: each layer runs twice.
    passes = []
    layer = policy.model.get_base_model().model.layers[0]
    layer.self_attn.register_forward_pre_hook(lambda module, arguments: passes.append(1))
    problem = tiny_problem(tiny_lm)
    groups = [prepare(group, problem) for group in random_draws(problem, 1)[0]]
    log_q, _ = policy.log_probs(groups)
    log_q.sum().backward()
    assert len(passes) == 2


def test_bfloat16_is_close_and_the_adapter_stays_float32(tiny_lm):
    plain, gradients, _ = gradient(tiny_lm)
    losses, rounded, policy = gradient(tiny_lm, bfloat16=True)
    gaps = np.abs(losses.terminal - plain.terminal)
    assert 0 < gaps.max() < BFLOAT16_NATS
    ours, theirs = (torch.cat([g.flatten() for g in found]) for found in (rounded, gradients))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {g.dtype for g in rounded} == {torch.float32}
    saved = safetensors.torch.load(policy.adapter_files()[ADAPTER_WEIGHTS])
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_bfloat16_base_keeps_float32_masters_that_learn(tiny_lm, tiny_lm_path, tmp_path):
    """Steps of 1e-5 vanish in bfloat16 weights of size 0.1, and must not vanish here."""
    lm = type(tiny_lm).load(str(tiny_lm_path), dtype="bfloat16")
    problem = tiny_problem(lm)
    learner = Learner(
        run_config(lm, bfloat16=True, learning_rate=1e-5, warmup_steps=0, steps=3),
        lm,
        [problem],
        ScriptedBuffer(random_draws(problem, 3)),
        MemoryAdapters("test"),
        tmp_path,
    )
    before = [p.detach().clone() for p in learner.policy.parameters()]
    learner.run()
    assert {p.dtype for p in learner.policy.parameters()} == {torch.float32}
    moved = [
        float((p - q).abs().max()) for p, q in zip(learner.policy.parameters(), before, strict=True)
    ]
    assert all(0 < step < 1e-4 for step in moved)
    moments = {t.dtype for s in learner.optimizer.state.values() for t in s.values()}
    assert moments == {torch.float32}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_layers_give_the_same_numbers(tiny_lm):
    plain, gradients, _ = gradient(tiny_lm)
    losses, again, _ = gradient(tiny_lm, compile=True, activation_checkpointing=True)
    np.testing.assert_allclose(losses.loss, plain.loss, rtol=1e-4)
    for ours, theirs in zip(again, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
