"""Policy gradients against enumeration, naive loops and finite differences, in float64."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.policy_gradient import (
    Decisions,
    leave_one_out,
    leave_one_out_to_go,
    reinforce,
    returns_to_go,
    shaped_rewards,
    standardised,
)
from baselines.ppo import PPOSettings, _score, loss_of, train_ppo
from baselines.trained import given, rollouts
from posteriori import metrics
from posteriori.errors import UserError
from posteriori.groups import prepare
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.policy import Policy, log_moves
from posteriori.problems import Problem
from tests.learner.helpers import random_strings, tiny_problem


@pytest.fixture(scope="module")
def double_lm(tiny_lm: LanguageModel) -> LanguageModel:
    """The tiny model in float64."""
    return replace(tiny_lm, model=copy.deepcopy(tiny_lm.model).double())


def shaken(policy: Policy, scale: float, seed: int = 0) -> Policy:
    """Move every adapter weight a little: PEFT starts with B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))
    return policy


@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_reinforce_is_unbiased(k: int) -> None:
    """Over all K-tuples of 5 outcomes the mean gradient is that of E_q[log R − β log q/p₀]."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    log_base = torch.log_softmax(torch.randn(5, generator=generator, dtype=torch.float64), 0)
    log_reward, beta = 3 * torch.randn(5, generator=generator, dtype=torch.float64), 0.7
    log_q = torch.log_softmax(theta, 0)
    objective = (log_q.exp() * (log_reward - beta * (log_q - log_base))).sum()
    (exact,) = torch.autograd.grad(objective, theta, retain_graph=True)
    expected = torch.zeros_like(exact)
    for drawn in itertools.product(range(5), repeat=k):
        made = log_q[list(drawn)][:, None]
        rewards = shaped_rewards(
            log_reward[list(drawn)],
            made.detach(),
            log_base[list(drawn)][:, None],
            torch.zeros(k, dtype=torch.int64),
            beta,
        )
        returns = rewards.sum(dim=1)
        loss = reinforce(made, returns - leave_one_out(returns)).mean()
        (gradient,) = torch.autograd.grad(loss, theta, retain_graph=True)
        expected -= made.sum().exp().item() * gradient
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-12)


def test_rloo_expects_the_finite_difference_of_the_objective(double_lm: LanguageModel) -> None:
    """On the language model: E over all pairs of strings, against J(θ ± h) by enumeration."""
    problem = tiny_problem(double_lm, max_tokens=2, words=(" cat", " dog"))
    prompt, beta = problem.prompts[0], 0.6
    settings = PPOSettings(lora_rank=1, estimator="rloo", epochs=1, samples_per_prompt=2)
    policy = shaken(Policy(double_lm, settings, 0), 0.1)
    exact = enumerate_posterior("tiny", prompt, problem.moves(prompt), problem.reward, 100)
    ids = problem.policy_ids(prompt)
    base = exact_log_q(exact.tree, double_lm, ids)

    def objective() -> float:
        log_q = exact_log_q(exact.tree, policy.language_model(), ids)
        return float(np.exp(log_q) @ (exact.log_reward - beta * (log_q - base)))

    strings = [given(problem, prompt, exact.tree.tokens(k)) for k in range(exact.count)]
    strings = [
        replace(z, log_reward=problem.reward.log_reward(prompt, [z.tokens])[0]) for z in strings
    ]
    log_q = exact_log_q(exact.tree, policy.language_model(), ids)
    draws = torch.Generator().manual_seed(0)  # whatever other tests have drawn before
    direction = [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in policy.parameters()]
    slope = 0.0
    for i, j in itertools.product(range(exact.count), repeat=2):
        group = prepare([strings[i], strings[j]], problem)
        (item,) = _score(policy, [group], settings, beta)
        now = Decisions.of(group, log_moves(policy.model, [group])[0])
        loss = loss_of(item, now, settings, beta, decisions=0, trajectories=2)
        gradient = torch.autograd.grad(loss, policy.parameters())
        along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        slope -= np.exp(log_q[i] + log_q[j]) * along

    step = 1e-4  # not smaller: the norms of the model round to float32
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, d in zip(policy.parameters(), direction, strict=True):
                parameter.add_(sign * step * d)
        values.append(objective())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)
    assert abs(slope) > 1e-3


def naive_loss(policy, old, problem, prompt, items, settings, beta):
    """The loss of one group, move by move with plain forwards."""
    moves, ids = problem.moves(prompt), problem.policy_ids(prompt)

    def conditionals(model, tokens):
        logits = model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0]
        rows = []
        for i in range(len(tokens) + 1):
            legal = torch.from_numpy(moves.masks(tokens)[i])
            here = logits[len(ids) - 1 + i][torch.from_numpy(moves.column_tokens)]
            rows.append(torch.log_softmax(here.masked_fill(~legal, -torch.inf), 0))
        made = [*(moves.columns[token] for token in tokens), len(moves.alphabet)]
        return rows, torch.stack([row[c] for row, c in zip(rows, made, strict=True)])

    log_r, scored = [], []
    for item in items:
        tokens = item.tokens.tolist()
        with torch.no_grad():
            before, base = conditionals(old.model, tokens), conditionals(problem.lm.model, tokens)
        scored.append((conditionals(policy.model, tokens), before[1], base))
        log_r.append(float(item.log_reward[-1]))
    if settings.target == "posterior":
        totals = [r - float(old_q.sum()) for r, (_, old_q, _) in zip(log_r, scored, strict=True)]
    elif settings.estimator == "grpo":
        totals = log_r
    else:
        totals = [
            r - beta * float((old_q - base[1]).sum())
            for r, (_, old_q, base) in zip(log_r, scored, strict=True)
        ]
    k = len(items)

    def from_move(i: int, t: int) -> float:
        """Return of trajectory i from its move t on, or from its last."""
        _, old_q, base = scored[i]
        t = min(t, len(old_q) - 1)
        reference = base[1][t:] if settings.target == "reward" else torch.zeros(len(old_q) - t)
        weight = beta if settings.target == "reward" else 1.0
        return log_r[i] - weight * float((old_q[t:] - reference).sum())

    per_move: list[list[float]] = []
    for i, (_, old_q, _) in enumerate(scored):
        others = [j for j in range(k) if j != i]
        mean = sum(totals[j] for j in others) / (k - 1)
        n = len(old_q)
        if settings.estimator == "ppo":
            row = [from_move(i, t) - np.mean([from_move(j, t) for j in others]) for t in range(n)]
            per_move.append(row)
        elif settings.estimator == "grpo":
            spread = np.std(totals, ddof=1)
            per_move.append([(totals[i] - np.mean(totals)) / spread] * n)
        else:
            per_move.append([totals[i] - mean] * n)
    if settings.estimator == "ppo":
        flat = [a for row in per_move for a in row]
        per_move = [[(a - np.mean(flat)) / np.std(flat, ddof=1) for a in row] for row in per_move]
    loss = torch.zeros((), dtype=torch.float64)
    decisions = sum(len(row) for row in per_move)
    for ((rows, log_q), old_q, base), advantages in zip(scored, per_move, strict=True):
        if settings.estimator == "rloo":
            loss = loss - advantages[0] * log_q.sum() / k
            continue
        total = torch.zeros((), dtype=torch.float64)
        for t, advantage in enumerate(advantages):
            ratio = torch.exp(log_q[t] - old_q[t])
            cut = min(max(ratio.item(), 1 - settings.clip_ratio), 1 + settings.clip_ratio)
            both = (ratio * advantage, torch.tensor(cut * advantage, dtype=torch.float64))
            total = total - min(both, key=float)
            if settings.estimator == "grpo" and settings.target == "reward":
                q = rows[t].exp()
                seen = q > 0
                total = total + beta * (q[seen] * (rows[t] - base[0][t])[seen]).sum()
        loss = loss + (total / decisions if settings.estimator == "ppo" else total / len(log_q) / k)
    return loss


@pytest.mark.parametrize("estimator", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize("target", ["reward", "posterior"])
def test_loss_and_gradient_equal_a_naive_loop(
    double_lm: LanguageModel, estimator: str, target: str
) -> None:
    """After the policy has moved, so that some ratios are clipped and some are not."""
    problem = tiny_problem(double_lm, max_tokens=4)
    prompt, beta = problem.prompts[1], 0.3
    settings = PPOSettings(
        lora_rank=8, estimator=estimator, target=target, epochs=1, clip_ratio=0.1
    )
    policy = shaken(Policy(double_lm, settings, 0), 0.05)
    old = shaken(Policy(double_lm, settings, 0), 0.05)
    items = [given(problem, prompt, z) for z in random_strings(problem.moves(prompt), 6, 1)]
    items = [replace(z, log_reward=problem.reward.log_reward(prompt, [z.tokens])[0]) for z in items]
    group = prepare(items, problem)
    (item,) = _score(policy, [group], settings, beta)
    shaken(policy, 0.01, seed=1)
    now = Decisions.of(group, log_moves(policy.model, [group])[0])
    decisions = float(now.decides.sum())
    ours = loss_of(item, now, settings, beta, decisions, len(items))
    theirs = naive_loss(policy, old, problem, prompt, items, settings, beta)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    if estimator != "rloo":
        ratio = (now.log_q - item.old.log_q).exp()[now.decides]
        outside = ((ratio - 1).abs() > settings.clip_ratio).double().mean()
        assert 0 < outside < 1
    parameters = policy.parameters()
    for mine, naive in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(mine, naive, rtol=1e-4, atol=1e-6)


def test_returns_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert returns_to_go(rewards).tolist() == [[7.0, 6.0, 4.0]]
    assert leave_one_out(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
    to_go = torch.tensor([[7.0, 6.0, 4.0], [5.0, 2.0, 0.0], [1.0, 3.0, 9.0]])
    others = leave_one_out_to_go(to_go, torch.tensor([2, 1, 2]))
    assert others.tolist() == [[3.0, 2.5, 5.5], [4.0, 4.5, 6.5], [6.0, 4.0, 3.0]]
    assert standardised(torch.tensor([1.0, 3.0, 5.0])).tolist() == [-1.0, 0.0, 1.0]
    assert standardised(torch.full((4,), 7.3)).tolist() == [0.0] * 4


def distances(policy: Policy, problem: Problem, log_target: list[np.ndarray]) -> list[float]:
    """TV of q to given distributions over the strings of the problem's first X."""
    prompt = problem.prompts[0]
    exact = enumerate_posterior("tiny", prompt, problem.moves(prompt), problem.reward, 1000)
    log_q = exact_log_q(exact.tree, policy.language_model(), problem.policy_ids(prompt))
    return [metrics.total_variation(target, log_q) for target in log_target]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ppo", "rloo"])
def test_the_two_targets_have_the_optima_they_claim(tiny_lm: LanguageModel, estimator: str) -> None:
    """`posterior` comes close to σ, `reward` with β = 1 to p₀ · R, and each is far from the other."""
    problem = tiny_problem(tiny_lm, max_tokens=2, words=(" cat", " dog", " sat"))
    problem = replace(problem, prompts=problem.prompts[:1])
    prompt = problem.prompts[0]
    exact = enumerate_posterior("tiny", prompt, problem.moves(prompt), problem.reward, 1000)
    log_base = exact_log_q(exact.tree, tiny_lm, problem.policy_ids(prompt))
    product = log_base + exact.log_reward
    product -= metrics.log_sum_exp(product)
    targets = {"posterior": exact.log_sigma, "reward": product}
    assert metrics.total_variation(product, exact.log_sigma) > 0.25
    epochs = {"ppo": 2, "rloo": 1}[estimator]
    for target, optimum in targets.items():
        settings = PPOSettings(
            estimator=estimator,
            target=target,
            kl_coefficient=1.0,
            steps=60,
            epochs=epochs,
            prompts_per_step=1,
            samples_per_prompt=64,
            learning_rate=3e-3,
            lora_rank=8,
        )
        trained = train_ppo([problem], settings, seed=0)
        assert trained.budget.reward_evaluations == 60 * 64
        (found,) = distances(trained.policy, problem, [optimum])
        assert found < 0.08, (target, found)


def test_without_a_penalty_ppo_forgets_all_but_the_best(tiny_lm: LanguageModel) -> None:
    """β = 0: log R rises and entropy falls; the curve and the costs say so."""
    problem = tiny_problem(tiny_lm, max_tokens=2, words=(" cat", " dog", " sat"))
    settings = PPOSettings(
        kl_coefficient=0.0, steps=12, epochs=4, prompts_per_step=2, learning_rate=5e-3, lora_rank=8
    )
    calls = []

    def collect(policy, problem, prompt, n, seed):
        calls.append(n)
        return rollouts(policy, problem, prompt, n, seed)

    trained = train_ppo([problem], settings, 0, collect, lambda policy, step: {"seen": step})
    first, last = trained.curve[0], trained.curve[-1]
    assert last["log_reward"] > first["log_reward"] + 0.5
    assert last["entropy"] < 0.7 * first["entropy"]
    assert sum(calls) == trained.budget.reward_evaluations == last["reward_evaluations"] == 12 * 32
    assert last["seen"] == 12
    assert trained.budget.token_forwards > 0


def test_the_penalty_adapts_towards_its_target(tiny_lm: LanguageModel) -> None:
    """A fresh policy has KL 0 < target, so β falls: by 20 % of 32/320 in the first round."""
    problem = tiny_problem(tiny_lm, max_tokens=2)
    settings = PPOSettings(
        steps=2, prompts_per_step=2, kl_target_nats=6.0, kl_horizon_trajectories=320, lora_rank=8
    )
    curve = train_ppo([problem], settings).curve
    assert curve[1]["kl_coefficient"] == pytest.approx(0.2 * (1 - 0.2 * 32 / 320))


def test_settings() -> None:
    with pytest.raises(UserError, match="biased"):
        PPOSettings(estimator="rloo")
    with pytest.raises(UserError, match="samples_per_prompt"):
        PPOSettings(samples_per_prompt=1)
    assert PPOSettings().within(1000).steps == 15
