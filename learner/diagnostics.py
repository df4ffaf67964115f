"""The numbers of a step, and the check that engine and learner mean the same q."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from learner.gradients import StepLosses
from posteriori.groups import prepare
from posteriori.metrics import ess_fraction, log_mean_exp
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory

ON_POLICY = "policy"
"""Behaviour whose stored log q is that of its adapter version at temperature 1."""

WITHOUT_VERSION = frozenset({"base", "gold"})
"""Behaviours that do not age with the adapter."""

VERSIONS_KEPT = 3
"""Published versions the engine check can still recompute: actors lag by one or two."""

CHECKED_TRAJECTORIES = 16
"""Trajectories recomputed for each version: one small forward each."""


def step_metrics(
    step: StepLosses, version: int, problems: Mapping[str, Problem]
) -> dict[str, float]:
    """Averages over the trajectories of one step.

    ``flow_spread``: mean |Dᵢ − D̄| along a trajectory. ``variance``: Var[log R/T − log q] within a
    group. ``staleness``: versions behind, of behaviours that have one. ``ess``, a share, and
    ``log_z/X``: effective share and log mean of the weights R/q of each group's on-policy
    trajectories. Replay keeps a Z once however often it was drawn, so both are trends, right in the
    limit of equal weights, and not estimates.
    """
    metrics = {
        "loss": float(step.loss.mean()),
        "flow_spread": float(step.spread.mean()),
        "variance": float(
            np.mean([step.terminal[step.group == g].var() for g in np.unique(step.group)])
        ),
        "trajectories": float(len(step.trajectories)),
        "log_reward": float(np.mean([t.terminal_log_reward for t in step.trajectories])),
        "length_tokens": float(np.mean([len(t) for t in step.trajectories])),
    }
    ages = [
        version - t.adapter_version for t in step.trajectories if t.behaviour not in WITHOUT_VERSION
    ]
    if ages:
        metrics["staleness"] = float(np.mean(ages))
    shares = []
    for g in np.unique(step.group):
        members = [step.trajectories[row] for row in np.flatnonzero(step.group == g)]
        weights = [
            t.terminal_log_reward - float(t.log_q.sum(dtype=np.float64) + t.log_q_stop[-1])
            for t in members
            if t.behaviour == ON_POLICY
        ]
        if len(weights) > 1:
            shares.append(ess_fraction(weights))
            name = case_name(problems[members[0].problem], members[0].prompt)
            metrics[f"log_z/{name}"] = log_mean_exp(weights)
    if shares:
        metrics["ess"] = float(np.mean(shares))
    return metrics


def case_name(problem: Problem, prompt: str) -> str:
    """``problem/prompt``, or the problem's name where it has one X, as oracles name their cases."""
    many = len(problem.prompts) + len(problem.test_prompts) > 1
    return f"{problem.name}/{prompt}" if many else problem.name


@dataclass
class EngineCheck:
    """|log q of the engine − log q of the learner| per token, for the same adapter version.

    The learner has moved on when a version's samples arrive, so the last published weights are kept
    and put back for one small forward without gradients. Both sides are at temperature 1.

    Attributes:
        tokens: decisions compared so far, ⊤ included.
        total_nats: sum of the differences.
        maximum_nats: largest difference.
    """

    tokens: int = 0
    total_nats: float = 0.0
    maximum_nats: float = 0.0
    _published: deque[tuple[int, list[torch.Tensor]]] = field(
        default_factory=lambda: deque(maxlen=VERSIONS_KEPT)
    )
    _checked: set[int] = field(default_factory=set)

    @property
    def mean_nats(self) -> float:
        """Mean difference per decision."""
        return self.total_nats / max(1, self.tokens)

    def remember(self, version: int, policy: Policy) -> None:
        """Keep a published version's weights."""
        weights = [parameter.detach().clone() for parameter in policy.parameters()]
        self._published.append((version, weights))
        self._checked &= {remembered for remembered, _ in self._published}

    def compare(
        self,
        policy: Policy,
        groups: Sequence[Sequence[Trajectory]],
        problems: Mapping[str, Problem],
    ) -> bool:
        """Compare once for each remembered version, when its on-policy samples are first drawn.

        Returns:
            Whether something was compared.
        """
        compared = False
        for version, weights in self._published:
            if version in self._checked:
                continue
            chosen = [
                [t for t in group if t.adapter_version == version and t.behaviour == ON_POLICY]
                for group in groups
            ]
            found = max(chosen, key=len, default=[])[:CHECKED_TRAJECTORIES]
            if found:
                self._checked.add(version)
                self._compare(policy, weights, found, problems[found[0].problem])
                compared = True
        return compared

    def _compare(
        self,
        policy: Policy,
        weights: Sequence[torch.Tensor],
        trajectories: Sequence[Trajectory],
        problem: Problem,
    ) -> None:
        parameters = policy.parameters()
        current = [parameter.data for parameter in parameters]
        group = prepare(trajectories, problem)
        try:
            for parameter, published in zip(parameters, weights, strict=True):
                parameter.data = published
            with torch.no_grad():
                log_q, log_q_stop = (values.cpu().numpy() for values in policy.log_probs([group]))
        finally:
            for parameter, value in zip(parameters, current, strict=True):
                parameter.data = value
        for row, t in enumerate(trajectories):
            n = len(t)
            stops = np.isfinite(log_q_stop[row, : n + 1]) & np.append(t.action, True)
            gaps = np.concatenate(
                [
                    np.abs(log_q[row, :n] - t.log_q)[t.action],
                    np.abs(log_q_stop[row, : n + 1][stops] - t.log_q_stop[stops]),
                ]
            )
            self.tokens += len(gaps)
            self.total_nats += float(gaps.sum())
            self.maximum_nats = max(self.maximum_nats, float(gaps.max()))
