"""GFlowNet objectives on a string tree, as pure functions of log-probabilities and rewards.

For a trajectory z₁ … zₙ⊤ let ℓₖ = log q(zₖ | x z₍<k₎), tᵢ = log q(⊤ | x z₁:ᵢ), rᵢ = log R(z₁:ᵢ⊤)/T.
Where ⊤ is legal define the *flow residual*

    Dᵢ = rᵢ − tᵢ − Σ_{k≤i} ℓₖ,

which equals log Z(x) for every i and every trajectory exactly when q(Z | x) ∝ R(Z | x)^(1/T). Every
objective here pulls the D's together: along a trajectory (SubTB), across a group (VarGrad-TB,
contrastive TB), or to a learned log Z(x) (TB). Behaviour never enters: no importance ratio.

Sources: SubTB(λ), Madan et al. 2209.12782; its form with terminable states, Hu et al. 2310.04363,
equation 3; TB, Malkin et al. 2201.13259; VarGrad, Richter et al. 2010.10436.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posteriori.config import LearnerConfig

ObjectiveName = Literal["subtb", "vargrad", "tb", "subtb+vargrad", "contrastive"]


@dataclass(frozen=True)
class Batch:
    """B trajectories of one or several X, padded to N tokens.

    Attributes:
        log_q: ℓ, [B, N]; 0 at tokens that are not actions (tool outputs) and at padding.
        log_q_stop: t, [B, N + 1]; ignored where ⊤ is illegal.
        log_reward: r, already divided by the reward temperature, [B, N + 1]; a constant; ignored
            where ⊤ is illegal.
        stop_legal: positions that have a D, bool [B, N + 1]; True at each trajectory's own end.
        lengths: n, int64 [B].
        group: which X, int64 [B], numbered from 0.
        log_z: learned log Z(x) of each trajectory, [B], or None.
    """

    log_q: Tensor
    log_q_stop: Tensor
    log_reward: Tensor
    stop_legal: Tensor
    lengths: Tensor
    group: Tensor
    log_z: Tensor | None = None

    @property
    def legal(self) -> Tensor:
        """Positions that have a D, padding excluded; bool [B, N + 1]."""
        positions = torch.arange(self.stop_legal.shape[1], device=self.stop_legal.device)
        return self.stop_legal & (positions <= self.lengths[:, None])


@dataclass(frozen=True)
class GroupLogZ:
    """Detached estimates of log Z(x) from each trajectory's whole group.

    Attributes:
        mean: mean over the group of each trajectory's mean D, [B].
        terminal: mean over the group of the terminal Dₙ, [B].
    """

    mean: Tensor
    terminal: Tensor


def flow_residuals(batch: Batch) -> Tensor:
    """D at every legal position, 0 elsewhere; float64 [B, N + 1].

    Gradients flow through ℓ and t and never through r. log Z of a long Z runs to thousands of nats,
    where float32 resolves 1e-4 at best; the arrays are small, so the sums are made in float64.
    """
    legal = batch.legal
    before = torch.nn.functional.pad(batch.log_q.double().cumsum(dim=1), (1, 0))
    # Masked entries may be -inf: they must leave before the subtraction, or gradients are NaN.
    reward = batch.log_reward.detach().double().masked_fill(~legal, 0.0)
    stop = batch.log_q_stop.double().masked_fill(~legal, 0.0)
    return (reward - stop - before).masked_fill(~legal, 0.0)


def terminal(residuals: Tensor, lengths: Tensor) -> Tensor:
    """Dₙ, the residual at each trajectory's own end; [B]."""
    return residuals.gather(1, lengths[:, None]).squeeze(1)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean of ``values`` [B] over each trajectory's group, repeated for its members; [B]."""
    size = int(group.max()) + 1
    total = values.new_zeros(size).index_add(0, group, values)
    count = values.new_zeros(size).index_add(0, group, torch.ones_like(values))
    return (total / count)[group]


@dataclass(frozen=True)
class Flows:
    """What D says of each trajectory, detached; nats, [B].

    Attributes:
        mean: mean of D over the trajectory, an estimate of log Z(x).
        spread: mean |Dᵢ − D̄|; 0 at the optimum.
        terminal: Dₙ = log R(z⊤)/T − log q(z⊤), the log importance weight under q.
    """

    mean: Tensor
    spread: Tensor
    terminal: Tensor


def summarise(batch: Batch, residuals: Tensor) -> Flows:
    """Summaries of D from :func:`flow_residuals`."""
    residuals, legal = residuals.detach(), batch.legal
    count = legal.sum(dim=1)
    mean = residuals.sum(dim=1) / count
    spread = ((residuals - mean[:, None]).abs() * legal).sum(dim=1) / count
    return Flows(mean, spread, terminal(residuals, batch.lengths))


def group_log_z(flows: Flows, group: Tensor) -> GroupLogZ:
    """Estimates of log Z(x) from groups, which must be whole."""
    return GroupLogZ(group_mean(flows.mean, group), group_mean(flows.terminal, group))


def penalty(residual: Tensor, huber_delta: float | None) -> Tensor:
    """residual², continued linearly beyond ``huber_delta`` nats (twice Huber's function)."""
    if huber_delta is None:
        return residual.square()
    size = residual.abs()
    return torch.where(
        size <= huber_delta, residual.square(), huber_delta * (2.0 * size - huber_delta)
    )


def subtb(
    values: Tensor, nodes: Tensor, subtb_lambda: float = 1.0, huber_delta: float | None = None
) -> Tensor:
    """Weighted mean of (Dᵢ − Dⱼ)² over the pairs i < j of each row's nodes; [B].

    The weight of a pair is λ^(j−i−1), where j − i counts nodes, not tokens. A row with fewer than
    two nodes has no pairs and loss 0. For λ = 1 the sum closes to N·Σ(D − D̄)²; for other λ it is
    one quadratic form of the centred D with a Toeplitz matrix. The centring is what keeps float32
    exact when D is large: Σ D² − (Σ D)²/N would cancel.

    Args:
        values: D, [B, M]; ignored where ``nodes`` is False.
        nodes: bool [B, M].
    """
    # Nodes to the front, so that the distance of two of them is the distance of their columns.
    order = torch.argsort(~nodes, dim=1, stable=True)
    nodes = nodes.gather(1, order)
    count = nodes.sum(dim=1, keepdim=True)
    columns = torch.where(nodes, values.gather(1, order), 0.0)
    shift = columns[:, :1].detach()
    columns = torch.where(nodes, columns - shift, 0.0)
    centred = torch.where(
        nodes, columns - columns.sum(dim=1, keepdim=True) / count.clamp(min=1), 0.0
    )

    if subtb_lambda == 1.0 and huber_delta is None:
        # N·Σ(D − D̄)² over the N(N−1)/2 pairs.
        return 2.0 * centred.square().sum(dim=1) / (count.squeeze(1) - 1).clamp(min=1)

    position = torch.arange(values.shape[1], device=values.device)
    distance = (position[:, None] - position[None, :]).abs()
    toeplitz = torch.as_tensor(subtb_lambda, dtype=values.dtype, device=values.device) ** (
        distance - 1
    )
    toeplitz = toeplitz.masked_fill(distance == 0, 0.0)
    mask = nodes.to(values.dtype)
    degree = mask @ toeplitz  # Σⱼ wᵢⱼ over the nodes of the row
    weights = (0.5 * (mask * degree).sum(dim=1)).masked_fill(count.squeeze(1) < 2, 1.0)
    if huber_delta is None:
        # Σ_{i<j} w (Dᵢ − Dⱼ)² = Σᵢ (Σⱼ wᵢⱼ) Dᵢ² − Σᵢⱼ wᵢⱼ Dᵢ Dⱼ
        form = degree * centred.square() - centred * (centred @ toeplitz)
        return (mask * form).sum(dim=1) / weights
    pairs = penalty(centred[:, :, None] - centred[:, None, :], huber_delta)
    return 0.5 * (toeplitz * mask[:, :, None] * mask[:, None, :] * pairs).sum(dim=(1, 2)) / weights


def contrastive_tb(ends: Tensor, group: Tensor, huber_delta: float | None = None) -> Tensor:
    """Mean of (Dₙ − D'ₙ)² over each trajectory's pairs with the others of its group; [B].

    Without Huber its gradient is VarGrad-TB's times 2K/(K−1) for a group of K.
    """
    same = group[:, None] == group[None, :]
    others = (same.sum(dim=1) - 1).clamp(min=1)
    pairs = penalty(ends[:, None] - ends[None, :], huber_delta)
    return torch.where(same, pairs, 0.0).sum(dim=1) / others


def configured_losses(
    batch: Batch, config: LearnerConfig, reference: GroupLogZ | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`losses` as a run file's ``learner`` section says."""
    return losses(
        batch,
        config.objective,
        subtb_lambda=config.subtb_lambda,
        anchor_weight=config.anchor_weight,
        root=config.root,
        huber_delta=config.huber_delta_nats,
        reference=reference,
    )


def losses(
    batch: Batch,
    objective: ObjectiveName,
    *,
    subtb_lambda: float = 1.0,
    anchor_weight: float = 1.0,
    root: Literal["group", "learned", "none"] = "group",
    huber_delta: float | None = None,
    reference: GroupLogZ | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of each trajectory, and D.

    Where ⊤ is illegal at the root, position 0 has no D of its own and ``root`` says what stands
    there: ``group`` the group's mean D, detached; ``learned`` log Z(x); ``none`` nothing, which
    leaves trajectories with different first tokens untied and exists to test that it does.

    Args:
        batch: whole groups, unless ``reference`` is given.
        objective: ``subtb+vargrad`` adds ``anchor_weight`` times VarGrad-TB to SubTB.
        huber_delta: residuals beyond it (nats) count linearly; None: never.
        reference: log Z estimates from the whole groups, where ``batch`` holds only parts of them.

    Returns:
        Losses [B], float64, and D from :func:`flow_residuals` [B, N + 1].

    Raises:
        ValueError: TB or a learned root without ``batch.log_z``.
    """
    residuals = flow_residuals(batch)
    ends = terminal(residuals, batch.lengths)
    if batch.log_z is None and (objective == "tb" or root == "learned"):
        raise ValueError("this objective needs a learned log Z(x) for every trajectory")
    log_z = None if batch.log_z is None else batch.log_z.double()
    if objective == "tb":
        assert log_z is not None
        return penalty(ends - log_z, huber_delta), residuals
    if objective == "contrastive":
        return contrastive_tb(ends, batch.group, huber_delta), residuals
    if reference is None:
        reference = group_log_z(summarise(batch, residuals), batch.group)
    anchor = penalty(ends - reference.terminal, huber_delta)
    if objective == "vargrad":
        return anchor, residuals

    values, nodes = residuals, batch.legal
    if root != "none":
        stand_in = log_z if root == "learned" else reference.mean
        assert stand_in is not None
        first = torch.where(nodes[:, 0], residuals[:, 0], stand_in)
        values = torch.cat([first[:, None], residuals[:, 1:]], dim=1)
        nodes = torch.cat([torch.ones_like(nodes[:, :1]), nodes[:, 1:]], dim=1)
    loss = subtb(values, nodes, subtb_lambda, huber_delta)
    if objective == "subtb+vargrad":
        loss = loss + anchor_weight * anchor
    return loss, residuals
