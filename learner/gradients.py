"""The gradient of one step, in micro-batches that fit a budget of tokens.

Trajectories of a group are compared with each other, so a group is one micro-batch whenever it
fits. A larger one is split and seen twice: first without gradients for its mean D, then part by
part with it. Either way the gradient is that of the whole step at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from learner.log_z import LogZTable
from learner.objectives import (
    Batch,
    Flows,
    GroupLogZ,
    configured_losses,
    flow_residuals,
    group_log_z,
    summarise,
)
from posteriori.config import LearnerConfig
from posteriori.errors import UserError
from posteriori.groups import Group, prepare
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory
from posteriori.tree import batches

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StepLosses:
    """What one step saw of each of its B trajectories, detached.

    Attributes:
        trajectories: in the order of the arrays, [B].
        group: index of the group, [B].
        loss, mean, spread, terminal: see ``objectives``, float64 [B].
        tokens: nodes of the groups' trees.
    """

    trajectories: list[Trajectory]
    group: NDArray[np.int64]
    loss: FloatArray
    mean: FloatArray
    spread: FloatArray
    terminal: FloatArray
    tokens: int = 0


class Lockstep(Protocol):
    """Keeps processes that hold parts of one model at the same number of passes through it."""

    def idle(self, passes: int, gradients: bool) -> None:
        """Join the passes of those that have more of them than these ``passes``."""
        ...


@dataclass(frozen=True, eq=False)
class _Part:
    """A group, or as much of it as fits a micro-batch; ``index`` numbers the groups of the step."""

    index: int
    group: Group


def accumulate(
    policy: Policy,
    groups: Sequence[Group],
    problems: Mapping[str, Problem],
    config: LearnerConfig,
    temperature: float,
    log_z: LogZTable | None,
    *,
    trajectories_of_step: int | None = None,
    lockstep: Lockstep | None = None,
) -> StepLosses:
    """Add the gradient of the mean loss over all trajectories to the parameters' ``grad``.

    Args:
        policy: q.
        groups: of one step.
        problems: by name.
        config: objective and token budget.
        temperature: divides log R.
        log_z: needed by TB and the learned root, else None.
        trajectories_of_step: what the mean is over, where ``groups`` is a part of the step; it may be
            empty then.
        lockstep: of the processes that share the base model, else None.

    Raises:
        UserError: a group is too large for an objective that needs all of it at once.
    """
    budget = config.tokens_per_microbatch
    parts = [
        _Part(index, part)
        for index, group in enumerate(groups)
        for part in _split(group, problems[group.problem], budget)
    ]
    total = trajectories_of_step or sum(len(part.group) for part in parts)
    references: list[GroupLogZ] | None = None
    if len(parts) > len(groups) and config.objective != "tb":
        if config.objective == "contrastive":
            largest = max(len(group.tree) for group in groups)
            raise UserError(
                f"The contrastive objective needs a whole group in one micro-batch, and a group "
                f"has {largest} tokens; learner.tokens_per_microbatch is {budget}.",
                f"Set tokens_per_microbatch to at least {largest}, or choose subtb+vargrad.",
            )
        references = _references(policy, parts, budget, temperature)
    microbatches = list(batches([part.group.tree for part in parts], budget))
    if lockstep is not None:
        lockstep.idle(0 if references is None else len(microbatches), gradients=False)

    seen: dict[int, tuple[FloatArray, Flows]] = {}
    for chosen in microbatches:
        members = [parts[i] for i in chosen]
        batch = _forward(policy, members, temperature)
        flows = summarise(batch, flow_residuals(batch))
        if log_z is not None:
            rows = [
                log_z.row(p.group.problem, p.group.prompt)
                for p in members
                for _ in range(len(p.group))
            ]
            estimate = group_log_z(flows, batch.group).mean
            batch = replace(batch, log_z=log_z.at(torch.tensor(rows), estimate).to(policy.device))
        reference = None if references is None else _join([references[i] for i in chosen])
        loss, _ = configured_losses(batch, config, reference)
        (loss.sum() / total).backward()
        sizes = [len(part.group) for part in members]
        columns = [
            torch.split(values.detach().cpu(), sizes)
            for values in (loss, flows.mean, flows.spread, flows.terminal)
        ]
        for place, i in enumerate(chosen):
            here = [column[place] for column in columns]
            seen[i] = (here[0].numpy(), Flows(*here[1:]))
    if lockstep is not None:
        lockstep.idle(len(microbatches), gradients=True)
    none = [np.empty(0)]
    in_order = [seen[i] for i in range(len(parts))]
    return StepLosses(
        trajectories=[t for part in parts for t in part.group.trajectories],
        group=np.repeat([part.index for part in parts], [len(part.group) for part in parts]).astype(
            np.int64
        ),
        loss=np.concatenate([loss for loss, _ in in_order] or none),
        mean=np.concatenate([flows.mean.numpy() for _, flows in in_order] or none),
        spread=np.concatenate([flows.spread.numpy() for _, flows in in_order] or none),
        terminal=np.concatenate([flows.terminal.numpy() for _, flows in in_order] or none),
        tokens=sum(len(group.tree) for group in groups),
    )


def _split(group: Group, problem: Problem, budget: int) -> list[Group]:
    """The group itself if its tree fits the budget, else parts of it that do (or single ones)."""
    if len(group.tree) <= budget:
        return [group]
    prompt_tokens = len(problem.policy_ids(problem.by_id[group.prompt]))
    chunks: list[list[Trajectory]] = []
    room = 0
    # Neighbours in lexicographic order share most prefixes.
    for trajectory in sorted(group.trajectories, key=lambda t: t.tokens.tolist()):
        if not chunks or len(trajectory) > room:
            chunks.append([])
            room = budget - prompt_tokens
        chunks[-1].append(trajectory)
        room -= len(trajectory)
    return [prepare(chunk, problem) for chunk in chunks]


def _forward(policy: Policy, parts: Sequence[_Part], temperature: float) -> Batch:
    """log q and log R of the parts' trajectories."""
    groups = [part.group for part in parts]
    log_q, log_q_stop = policy.log_probs(groups)
    shape = log_q_stop.shape
    reward = np.zeros(shape, dtype=np.float32)
    stop_legal = np.zeros(shape, dtype=np.bool_)
    row = 0
    for group in groups:
        rows, columns = slice(row, row + len(group)), slice(0, group.stop_legal.shape[1])
        reward[rows, columns] = group.log_rewards()
        stop_legal[rows, columns] = group.stop_legal
        row += len(group)
    device = log_q.device
    return Batch(
        log_q=log_q,
        log_q_stop=log_q_stop,
        log_reward=torch.from_numpy(reward).to(device) / temperature,
        stop_legal=torch.from_numpy(stop_legal).to(device),
        lengths=torch.from_numpy(np.concatenate([group.lengths for group in groups])).to(device),
        group=torch.tensor([p.index for p in parts for _ in range(len(p.group))], device=device),
    )


@torch.no_grad()
def _references(
    policy: Policy, parts: Sequence[_Part], budget: int, temperature: float
) -> list[GroupLogZ]:
    """log Z estimates from whole groups, cut into the parts."""
    means: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    ends: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    for chosen in batches([part.group.tree for part in parts], budget):
        batch = _forward(policy, [parts[i] for i in chosen], temperature)
        flows = summarise(batch, flow_residuals(batch))
        sizes = [len(parts[i].group) for i in chosen]
        for i, mean, end in zip(
            chosen, flows.mean.split(sizes), flows.terminal.split(sizes), strict=True
        ):
            means[i], ends[i] = mean, end
    sizes = [len(part.group) for part in parts]
    index = torch.tensor([p.index for p in parts for _ in range(len(p.group))]).to(policy.device)
    flows = Flows(torch.cat(means), torch.zeros(len(index), device=policy.device), torch.cat(ends))
    whole = group_log_z(flows, index)
    return [
        GroupLogZ(mean, end)
        for mean, end in zip(whole.mean.split(sizes), whole.terminal.split(sizes), strict=True)
    ]


def _join(references: Sequence[GroupLogZ]) -> GroupLogZ:
    return GroupLogZ(
        torch.cat([reference.mean for reference in references]),
        torch.cat([reference.terminal for reference in references]),
    )
