"""Supervised fine-tuning: maximum likelihood on given Z.

Minimises −log q(Z⊤ | X), q normalised over the legal moves exactly as the GFlowNet policy is. With
samples of the posterior as data its optimum is the posterior (it minimises KL(σ‖q)); with a few gold
answers it fits those few. No reward is evaluated: what the pairs cost is for the caller to count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baselines.draws import Budget
from baselines.trained import (
    AdapterSettings,
    Evaluate,
    Optimiser,
    Trained,
    microbatches,
    packed,
    training_tokens,
)
from posteriori.errors import UserError
from posteriori.groups import Group
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory


@dataclass(frozen=True)
class SFTSettings(AdapterSettings):
    """SFT of ``steps`` batches of ``batch_size`` pairs, reshuffled in every pass over them."""

    batch_size: int = 64


def train_sft(
    problems: Sequence[Problem],
    pairs: Sequence[Trajectory],
    settings: SFTSettings = SFTSettings(),
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Fit a fresh adapter to pairs.

    Args:
        problems: all of one base LM.
        pairs: (X, Z) made by ``baselines.trained.given``, or scored trajectories; their rewards are
            not looked at. Tool outputs are context, not targets.
        settings: see ``SFTSettings``.
        seed: of the adapter and the order of the pairs.
        evaluate: called with (policy, step) every ``evaluate_every_steps`` and after the last step.

    Returns:
        The adapter; its curve has ``loss`` (−log q of a pair, nats) and what ``evaluate`` returns.

    Raises:
        UserError: there are no pairs.
        CorruptPayload: a pair is not one of these problems.
    """
    if not pairs:
        raise UserError("SFT was given no (X, Z) pairs.", "Give at least one.")
    by_name = {problem.name: problem for problem in problems}
    policy = Policy(problems[0].lm, settings, seed)
    optimiser = Optimiser(policy, settings, settings.steps)
    rng = np.random.default_rng(seed)
    budget, seconds = Budget(), 0.0
    curve: list[dict[str, float]] = []
    queue: list[int] = []
    for step in range(1, settings.steps + 1):
        began = time.perf_counter()
        while len(queue) < min(settings.batch_size, len(pairs)):
            queue += rng.permutation(len(pairs)).tolist()
        batch = [pairs[i] for i in queue[: settings.batch_size]]
        del queue[: len(batch)]
        groups = packed(batch, by_name)
        loss = 0.0
        for members in microbatches(groups, settings.tokens_per_microbatch):
            part = -sequence_log_q(policy, members).sum() / len(batch)
            part.backward()
            loss += float(part.detach())
        norm = optimiser.step()
        budget += Budget(token_forwards=training_tokens(groups))
        seconds += time.perf_counter() - began
        row = {"step": float(step), "loss": loss, "gradient_norm": norm}
        if evaluate and (step % settings.evaluate_every_steps == 0 or step == settings.steps):
            row |= evaluate(policy, step)
        curve.append(row)
    return Trained(policy, budget, seconds, curve)


def sequence_log_q(policy: Policy, groups: Sequence[Group]) -> torch.Tensor:
    """log q(Z⊤ | X) of every trajectory, with gradients; float32 [B] in the order of the groups."""
    log_q, log_q_stop = policy.log_probs(groups)
    ends = torch.from_numpy(np.concatenate([group.lengths for group in groups])).to(log_q.device)
    return log_q.sum(dim=1) + log_q_stop.gather(1, ends[:, None]).squeeze(1)
