"""Training until the policy is near enough on held-out X's: GFlowNet objectives and PPO, by one meter.

How far the policy is costs nothing: neither seconds nor forwards of it are counted. The distance to all held-out
X's is taken only when that to the first few says that it may be near enough.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from baselines.ppo import PPOSettings, train_ppo
from benchmarks.instead.meter import Cost, Meter
from benchmarks.instead.verdict import Ground
from posteriori.commands.local import train_locally
from posteriori.policy import Policy

SCREENED = 24
"""Held-out X's that are looked at every time."""

SCREEN_MARGIN = 1.1
"""All of them are looked at once the first few are within this factor of the bound."""

Objective = Literal["subtb+vargrad", "subtb", "tb", "vargrad"]
OBJECTIVES: tuple[Objective, ...] = ("subtb+vargrad", "subtb", "tb", "vargrad")


class _NearEnough(Exception):
    """Training need not go on."""


@dataclass(eq=False)
class Race:
    """The curve of one training.

    Attributes:
        ground: the problem with its exact posteriors.
        bound: TV that ends it, mean over the held-out X's.
        most_forwards: token forwards after which it has failed.
        curve: (step, cost, TV), TV over all held-out X's where ``whole`` says so, else over the first few.
        reached: the cost when the bound was kept; None: not yet.
        policy: as it was then, or at the end.
    """

    ground: Ground
    bound: float
    most_forwards: float = float("inf")
    curve: list[dict[str, float]] = field(default_factory=list)
    reached: Cost | None = None
    policy: Policy | None = None
    meter: Meter = field(default_factory=Meter)

    def look(self, policy: Policy, step: int) -> dict[str, float]:
        """An ``evaluate`` of the learner and of PPO.

        Raises:
            _NearEnough: the bound is kept, or the forwards are spent.
        """
        with self.meter.paused():
            self.policy = policy
            cost = self.meter.cost
            sampler = policy.language_model()
            few = replace(self.ground, exact=self.ground.exact[:SCREENED])
            found = few.distance(sampler)
            whole = len(few.exact) == len(self.ground.exact)
            if not whole and found["total_variation"] <= SCREEN_MARGIN * self.bound:
                found, whole = self.ground.distance(sampler), True
            row = {"step": float(step), "whole": float(whole), **found}
            row |= {
                "token forwards": cost.token_forwards,
                "reward evaluations": cost.reward_evaluations,
                "seconds": cost.seconds,
            }
            self.curve.append(row)
            if whole and found["total_variation"] <= self.bound:
                self.reached = cost
            if self.reached is not None or cost.token_forwards > self.most_forwards:
                raise _NearEnough
        return {}

    def run(self, train: Callable[[], object]) -> None:
        """Train under the meter until the bound is kept or ``train`` ends."""
        with self.meter.running(self.ground.lm.model), contextlib.suppress(_NearEnough):
            train()


def gflownet(race: Race, objective: Objective, seed: int, work: Path) -> None:
    """Train as the run file says, under an objective."""
    config = race.ground.config
    learner = config.learner.model_copy(update={"objective": objective})
    config = config.model_copy(update={"learner": learner, "seed": seed})
    problem = race.meter.problem(race.ground.problem)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        race.run(
            lambda: train_locally(
                config,
                [problem],
                directory=Path(directory) / "run",
                lm=race.ground.lm,
                evaluate=race.look,
            )
        )


def ppo(race: Race, settings: PPOSettings, seed: int) -> None:
    """PPO whose optimum is the posterior."""
    problem = race.meter.problem(race.ground.problem)
    race.run(lambda: train_ppo([problem], settings, seed, evaluate=race.look))
