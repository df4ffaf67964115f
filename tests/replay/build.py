"""Trajectories for replay tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posteriori.config import ReplayConfig
from posteriori.trajectory import Trajectory

UNLIMITED = 10**9
"""A slack that never makes anyone wait."""


def trajectory(
    tokens: Sequence[int],
    log_reward: float = 0.0,
    *,
    prompt: str = "x",
    problem: str = "p",
    version: int = 0,
    reward_version: int = 0,
    behaviour: str = "policy",
    actor: str = "actor-0",
) -> Trajectory:
    """A well-formed trajectory whose prefixes all have the same log reward."""
    n = len(tokens)
    return Trajectory(
        problem=problem,
        prompt=prompt,
        group="g",
        actor=actor,
        behaviour=behaviour,
        adapter_version=version,
        reward_version=reward_version,
        tokens=np.array(tokens, dtype=np.int32),
        action=np.ones(n, dtype=np.bool_),
        log_q=np.full(n, -1.0, dtype=np.float32),
        log_q_stop=np.full(n + 1, -2.0, dtype=np.float32),
        log_reward=np.full(n + 1, log_reward, dtype=np.float32),
        stop_legal=np.ones(n + 1, dtype=np.bool_),
    )


def config(**changes: object) -> ReplayConfig:
    """A configuration whose limiter never waits, uniform draws, unless changed."""
    values: dict[str, object] = {
        "slack_trajectories": UNLIMITED,
        "recent_share": 0.0,
        "prioritised_share": 0.0,
        "capacity_per_prompt": 512 if "near_duplicate_tolerance" in changes else 4096,
        **changes,
    }
    return ReplayConfig.model_validate(values)


def tokens_of(trajectories: Sequence[Trajectory]) -> list[tuple[int, ...]]:
    """The token sequences of trajectories, in order."""
    return [tuple(t.tokens.tolist()) for t in trajectories]
