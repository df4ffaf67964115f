"""PPO, RLOO and GRPO on log R: reward maximisation with a penalty for leaving the base LM.

What they converge to is not the posterior, except where stated:

    target ``reward``     max E_q[log R] − β KL(q‖p₀)  →  q* ∝ p₀ · R^{1/β}, p₀ the policy's base under
                          its own prompt, masked. With β = 1 that is the posterior of prior p₀ and
                          likelihood R; it is σ = R/Z only for a log R that leaves p₀ out. β → 0
                          collapses onto the best Z. (The paper's PPO: β adapted.)
    target ``posterior``  max E_q[log R − log q]  →  q* = σ: β = 1 with R/p₀ as the reward, or maximum-
                          entropy RL at temperature 1. Same optimum as the GFlowNet, other gradient.

GRPO divides returns by their spread in each group, so its effective β differs from X to X.

Short and plain on purpose: a library's PPO knows neither legal moves nor a reward for a whole
sequence of a masked alphabet without more code around it than stands here. Left out: a learned value
function (the baseline of a decision is the mean return from there on of the other trajectories of the same X)
and bootstrapping.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from baselines.draws import Budget
from baselines.policy_gradient import (
    Decisions,
    clipped_fraction,
    clipped_surrogate,
    leave_one_out,
    leave_one_out_to_go,
    reinforce,
    returns_to_go,
    shaped_rewards,
    standardised,
)
from baselines.trained import (
    AdapterSettings,
    Collect,
    Evaluate,
    Optimiser,
    Trained,
    check_positive,
    microbatches,
    prompts_of,
    rollouts,
    sampling_tokens,
    training_tokens,
)
from posteriori.errors import UserError
from posteriori.groups import Group, prepare
from posteriori.metrics import unique_fraction
from posteriori.policy import Policy, log_moves
from posteriori.problems import Problem
from posteriori.seams import Prompt

KL_STEP = 0.2
"""Largest relative error of the KL that the adaptive coefficient reacts to (Ziegler et al. 2019)."""


@dataclass(frozen=True)
class PPOSettings(AdapterSettings):
    """Rounds of rollouts and updates; ``steps`` counts rounds.

    Attributes:
        estimator: ``ppo`` (decision by decision, clipped), ``grpo`` (clipped, one standardised
            advantage for a whole Z, KL as a loss) or ``rloo`` (REINFORCE on whole Z, one epoch).
        target: ``reward`` or ``posterior``; see the module.
        prompts_per_step: X's in a round.
        samples_per_prompt: K ≥ 2.
        epochs: passes over a round's trajectories.
        prompts_per_update: X's in one optimiser step.
        clip_ratio: ε.
        kl_coefficient: β; of no effect for target ``posterior``.
        kl_target_nats: β is adapted towards this KL(q‖p₀) of a Z; None: β stays.
        kl_horizon_trajectories: β changes by at most 20 % in so many trajectories.
    """

    estimator: Literal["ppo", "rloo", "grpo"] = "ppo"
    target: Literal["reward", "posterior"] = "reward"
    prompts_per_step: int = 4
    samples_per_prompt: int = 16
    epochs: int = 4
    prompts_per_update: int = 2
    clip_ratio: float = 0.2
    kl_coefficient: float = 0.2
    kl_target_nats: float | None = None
    kl_horizon_trajectories: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("epochs", self.epochs)
        if self.samples_per_prompt < 2:
            raise UserError(
                f"samples_per_prompt is {self.samples_per_prompt}.",
                "Give at least 2: the others are the baseline of each.",
            )
        if self.estimator == "rloo" and self.epochs != 1:
            raise UserError(
                f"RLOO has no importance ratio, so its second epoch of {self.epochs} would be biased.",
                "Set epochs=1.",
            )

    @property
    def trajectories_per_step(self) -> int:
        """Reward evaluations of a round."""
        return self.prompts_per_step * self.samples_per_prompt

    def within(self, reward_evaluations: int) -> PPOSettings:
        """The same with as many rounds as the budget pays for, at least one."""
        return replace(self, steps=max(1, reward_evaluations // self.trajectories_per_step))


@dataclass(frozen=True, eq=False)
class _Rollout:
    """A group with what stays fixed while it is trained on.

    Attributes:
        old, base: q_old and p₀.
        log_reward: log R(Z⊤), [K].
        advantages: [K, M].
    """

    group: Group
    old: Decisions
    base: Decisions
    log_reward: Tensor
    advantages: Tensor


def train_ppo(
    problems: Sequence[Problem],
    settings: PPOSettings = PPOSettings(),
    seed: int = 0,
    collect: Collect = rollouts,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Train a fresh adapter by policy gradients.

    Args:
        problems: all of one base LM.
        settings: see ``PPOSettings``.
        seed: of adapter, prompts and samples.
        collect: draws and scores trajectories of one X on-policy.
        evaluate: called with (policy, step) every ``evaluate_every_steps`` and after the last step.

    Returns:
        The adapter. Its curve has, for each round, means over its trajectories: ``log_reward``,
        ``kl_base`` (estimate of KL(q‖p₀) of a Z, nats), ``entropy`` (nats a decision),
        ``unique_fraction``; and ``kl_coefficient``, ``clipped_fraction`` (of the last epoch),
        ``reward_evaluations`` so far, and what ``evaluate`` returns.

    Raises:
        RewardError: the reward broke its contract; names problem, prompt and Z.
    """
    policy = Policy(problems[0].lm, settings, seed)
    updates = settings.epochs * -(-settings.prompts_per_step // settings.prompts_per_update)
    optimiser = Optimiser(policy, settings, settings.steps * updates)
    rng = np.random.default_rng(seed)
    prompts = _prompts(problems, rng)
    budget, seconds = Budget(), 0.0
    curve: list[dict[str, float]] = []
    beta = settings.kl_coefficient
    for step in range(1, settings.steps + 1):
        began = time.perf_counter()
        groups = []
        for _ in range(settings.prompts_per_step):
            problem, prompt = next(prompts)
            drawn = collect(
                policy, problem, prompt, settings.samples_per_prompt, int(rng.integers(2**62))
            )
            groups.append(prepare(drawn, problem))
            budget += Budget(sampling_tokens(problem, prompt, drawn), len(drawn))
        # q_old, p₀ and one pass for each epoch.
        budget += Budget((2 + settings.epochs) * training_tokens(groups))
        round_ = _score(policy, groups, settings, beta)
        row = {"step": float(step), "kl_coefficient": beta, **_summary(round_)}
        clipped = [0.0]
        for _ in range(settings.epochs):
            order = rng.permutation(len(round_))
            clipped = [
                _update(policy, optimiser, [round_[i] for i in chosen], settings, beta)
                for chosen in _chunks(order.tolist(), settings.prompts_per_update)
            ]
        row["clipped_fraction"] = float(np.mean(clipped))
        row["reward_evaluations"] = float(budget.reward_evaluations)
        if settings.kl_target_nats is not None:
            error = np.clip(row["kl_base"] / settings.kl_target_nats - 1, -KL_STEP, KL_STEP)
            share = settings.trajectories_per_step / settings.kl_horizon_trajectories
            beta *= 1 + float(error) * share
        seconds += time.perf_counter() - began
        if evaluate and (step % settings.evaluate_every_steps == 0 or step == settings.steps):
            row |= evaluate(policy, step)
        curve.append(row)
    return Trained(policy, budget, seconds, curve)


def _prompts(
    problems: Sequence[Problem], rng: np.random.Generator
) -> Iterator[tuple[Problem, Prompt]]:
    """X's without end, each once in every pass, in an order of its own."""
    everything = prompts_of(problems)
    while True:
        for index in rng.permutation(len(everything)):
            yield everything[index]


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def _score(
    policy: Policy, groups: Sequence[Group], settings: PPOSettings, beta: float
) -> list[_Rollout]:
    """q_old, p₀, returns and advantages of a round."""
    found = []
    for group in groups:
        (old_moves,), (base_moves,) = (
            log_moves(policy.model, [group]),
            log_moves(policy.lm.model, [group]),
        )
        old, base = Decisions.of(group, old_moves), Decisions.of(group, base_moves)
        log_reward = torch.from_numpy(
            np.asarray([item.terminal_log_reward for item in group.trajectories])
        ).to(old.log_q)
        last = torch.from_numpy(group.lengths).to(old.log_q.device)
        if settings.target == "posterior":
            reference, weight = torch.zeros_like(base.log_q), 1.0
        else:
            # GRPO's penalty is a term of its loss.
            reference, weight = base.log_q, 0.0 if settings.estimator == "grpo" else beta
        rewards = shaped_rewards(log_reward, old.log_q, reference, last, weight)
        returns = rewards.sum(dim=1)
        if settings.estimator == "ppo":
            to_go = returns_to_go(rewards)
            advantages = to_go - leave_one_out_to_go(to_go, last)
        elif settings.estimator == "grpo":
            advantages = standardised(returns)[:, None].expand_as(old.log_q)
        else:
            advantages = (returns - leave_one_out(returns))[:, None].expand_as(old.log_q)
        found.append(_Rollout(group, old, base, log_reward, advantages.where(old.decides, 0.0)))
    if settings.estimator != "ppo":
        return found
    # Advantages of tens of nats would only fill the clip: one scale for the whole round.
    chosen = torch.cat([item.advantages[item.base.decides] for item in found])
    mean, scale = chosen.mean(), chosen.std().clamp_min(1e-6)
    return [
        replace(item, advantages=((item.advantages - mean) / scale).where(item.base.decides, 0.0))
        for item in found
    ]


def _update(
    policy: Policy,
    optimiser: Optimiser,
    chosen: Sequence[_Rollout],
    settings: PPOSettings,
    beta: float,
) -> float:
    """One optimiser step on some groups of a round; the share of decisions out of the clip."""
    by_group = {id(item.group): item for item in chosen}
    decisions = float(sum(item.base.decides.sum() for item in chosen))
    trajectories = sum(len(item.group) for item in chosen)
    outside = 0.0
    groups = [item.group for item in chosen]
    for members in microbatches(groups, settings.tokens_per_microbatch):
        total = torch.zeros((), device=policy.device)
        for group, moves in zip(members, log_moves(policy.model, members), strict=True):
            item, now = by_group[id(group)], Decisions.of(group, moves)
            total = total + loss_of(item, now, settings, beta, decisions, trajectories)
            share = clipped_fraction(
                now.log_q.detach(), item.old.log_q, now.decides, settings.clip_ratio
            )
            outside += share * len(group) / trajectories
        total.backward()
    optimiser.step()
    return outside


def loss_of(
    item: _Rollout,
    now: Decisions,
    settings: PPOSettings,
    beta: float,
    decisions: float,
    trajectories: int,
) -> Tensor:
    """A group's share of the loss of one update over ``decisions`` of ``trajectories``."""
    if settings.estimator == "rloo":
        return reinforce(now.log_q, item.advantages[:, 0]).sum() / trajectories
    surrogate = clipped_surrogate(now.log_q, item.old.log_q, item.advantages, settings.clip_ratio)
    surrogate = surrogate.where(now.decides, 0.0)
    if settings.estimator == "ppo":
        return surrogate.sum() / decisions
    if settings.target == "reward":
        surrogate = surrogate + beta * now.kl(item.base)
    return (surrogate.sum(dim=1) / now.decides.sum(dim=1)).sum() / trajectories


def _summary(round_: Sequence[_Rollout]) -> dict[str, float]:
    """Means over a round, before it is trained on."""
    log_reward = torch.cat([item.log_reward for item in round_])
    divergence = torch.cat([(item.old.log_q - item.base.log_q).sum(dim=1) for item in round_])
    entropy = torch.cat([item.old.entropy()[item.old.decides] for item in round_])
    unique = [
        unique_fraction([tuple(z.tokens.tolist()) for z in item.group.trajectories])
        for item in round_
    ]
    return {
        "log_reward": float(log_reward.mean()),
        "kl_base": float(divergence.mean()),
        "entropy": float(entropy.mean()),
        "unique_fraction": float(np.mean(unique)),
    }
