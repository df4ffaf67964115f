"""Advantages and surrogate losses of PPO, RLOO and GRPO, one group at a time.

A group is K trajectories of one X with up to M decisions each: its tokens and ⊤, tool outputs left
out. Arrays are [K, M] with zeros where nothing is decided, or [K] for whole trajectories. Losses are
written so that descending them ascends the expected return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posteriori.groups import Group

STANDARD_DEVIATION_FLOOR = 1e-6
"""Keeps a group of equal returns from being divided by zero: its advantages are zero anyway."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a model says about the moves that a group made.

    Attributes:
        log_q: of the moves made, [K, M].
        log_moves: of every legal move at every state, [U, V + 1]; -inf where illegal.
        state_of: row of ``log_moves`` for each decision, int64 [K, M].
        decides: where there is a decision, bool [K, M].
    """

    log_q: Tensor
    log_moves: Tensor
    state_of: Tensor
    decides: Tensor

    @classmethod
    def of(cls, group: Group, log_moves: Tensor) -> Decisions:
        """Pick the moves made out of ``posteriori.policy.log_moves``; M is the longest Z plus one."""
        device = log_moves.device
        column_of = np.pad(group.column_of, ((0, 0), (0, 1)))
        column_of[np.arange(len(group)), group.lengths] = log_moves.shape[1] - 1
        state_of = torch.from_numpy(group.state_of).to(device)
        decides = torch.from_numpy(group.decides).to(device)
        made = log_moves[state_of, torch.from_numpy(column_of).to(device)]
        return cls(made.where(decides, 0.0), log_moves, state_of, decides)

    def entropy(self) -> Tensor:
        """H(q(· | state)) at each decision, nats, 0 elsewhere; [K, M]."""
        finite = self.log_moves.masked_fill(self.log_moves == -torch.inf, 0.0)
        return (-(self.log_moves.exp() * finite).sum(-1))[self.state_of].where(self.decides, 0.0)

    def kl(self, base: Decisions) -> Tensor:
        """KL(q(· | state)‖p₀(· | state)) at each decision, exact over all moves, nats; [K, M]."""
        gap = (self.log_moves - base.log_moves).masked_fill(self.log_moves == -torch.inf, 0.0)
        return (self.log_moves.exp() * gap).sum(-1)[self.state_of].where(self.decides, 0.0)


def shaped_rewards(
    log_reward: Tensor, log_q: Tensor, log_base: Tensor, last: Tensor, kl_coefficient: float
) -> Tensor:
    """Reward of each decision: −β (log q − log p₀), and log R besides on the last one; [K, M].

    Its sum over a trajectory is log R − β log q/p₀: maximised in expectation by p₀ · R^{1/β}.

    Args:
        log_reward: log R(Z⊤), [K].
        log_q, log_base: of the moves made, detached, [K, M].
        last: index of the decision for ⊤, int64 [K].
        kl_coefficient: β.
    """
    rewards = -kl_coefficient * (log_q - log_base)
    return rewards.scatter_add(1, last[:, None], log_reward[:, None].to(rewards.dtype))


def returns_to_go(rewards: Tensor) -> Tensor:
    """Σ of the rewards from each decision on, [K, M]."""
    return rewards.flip(1).cumsum(1).flip(1)


def leave_one_out(returns: Tensor) -> Tensor:
    """Mean return of the other K − 1 trajectories of the X, [K]; independent of one's own draws."""
    return (returns.sum() - returns) / (len(returns) - 1)


def leave_one_out_to_go(to_go: Tensor, last: Tensor) -> Tensor:
    """Mean return from each decision on of the other K − 1 trajectories of the X, [K, M].

    One that has ended counts with that of its last decision. So much of a return of 32 tokens is −log q of those
    before and behind that a baseline for the whole of it says nothing about a part.

    Args:
        to_go: of ``returns_to_go``, [K, M].
        last: index of the decision for ⊤, int64 [K].
    """
    places = torch.arange(to_go.shape[1], device=to_go.device)
    held = to_go.gather(1, torch.minimum(places, last[:, None]))
    return (held.sum(dim=0) - held) / (len(held) - 1)


def standardised(returns: Tensor) -> Tensor:
    """(G − mean) / standard deviation over the group (GRPO, Shao et al. 2024), [K]."""
    return (returns - returns.mean()) / returns.std().clamp_min(STANDARD_DEVIATION_FLOOR)


def clipped_surrogate(
    log_q: Tensor, log_q_old: Tensor, advantages: Tensor, clip_ratio: float
) -> Tensor:
    """−min(ρA, clip(ρ, 1 ± ε)A) of each decision, ρ = q/q_old (Schulman et al. 2017, eq. 7); [K, M]."""
    ratio = (log_q - log_q_old).exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def reinforce(log_q: Tensor, advantages: Tensor) -> Tensor:
    """−A log q(Z⊤) of each trajectory, [K]; a whole Z is one action (RLOO, Ahmadian et al. 2024).

    With A = G − leave-one-out mean its gradient is an unbiased estimate of −∇E_q[G], also where
    G = log R − β log q/p₀ depends on q: the term left out, E_q[∇ log q], is zero.
    """
    return -advantages * log_q.sum(dim=1)


def clipped_fraction(log_q: Tensor, log_q_old: Tensor, decides: Tensor, clip_ratio: float) -> float:
    """Share of decisions whose ratio has left the trusted interval."""
    outside = ((log_q - log_q_old).exp() - 1).abs() > clip_ratio
    return float((outside & decides).sum() / decides.sum())
