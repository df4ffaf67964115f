"""The hook on a real registry: it asks for actors, counts GPU-hours, and ends a run that has spent them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from actors.autoscale_hook import AutoscaleHook
from posteriori.config import RunConfig, parse
from posteriori.trajectory import Trajectory
from replay.connection import connect
from replay.memory_buffer import MemoryBuffer
from replay.registry import RunRegistry
from replay.server import EmbeddedServer


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), capacity_bytes=2**24) as server:
        yield server.url


@pytest.fixture
def registry(url: str) -> RunRegistry:
    client = connect(url)
    client.flushall()
    return RunRegistry(client, "a")


def config(**autoscale: Any) -> RunConfig:
    problem = {"name": "t", "kind": "tempered", "prompts": [{"x": "hi"}], "max_tokens": 3}
    scale = {"max_actors": 8, "hold_seconds": 0, "settle_seconds": 10} | autoscale
    sampling = {"gpus_per_actor": 0.5, "engine": "transformers"}
    replay = {"slack_trajectories": 128}
    return parse(
        {
            "run": "a",
            "problems": [problem],
            "autoscale": scale,
            "sampling": sampling,
            "replay": replay,
        }
    )


def filled(run: RunConfig, received: int, drawn: int) -> MemoryBuffer:
    buffer = MemoryBuffer(run.replay.model_copy(update={"slack_trajectories": 10**9}))
    one = Trajectory(
        problem="t",
        prompt="0",
        group="g",
        actor="actor-1",
        behaviour="policy",
        adapter_version=0,
        reward_version=0,
        tokens=np.array([1], dtype=np.int32),
        action=np.ones(1, dtype=np.bool_),
        log_q=np.zeros(1, dtype=np.float32),
        log_q_stop=np.zeros(2, dtype=np.float32),
        log_reward=np.zeros(2, dtype=np.float32),
        stop_legal=np.ones(2, dtype=np.bool_),
    )
    buffer.insert([one] * received)
    if drawn:
        buffer.draw(1, drawn)
    return buffer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_waiting_learner_gets_more_actors_and_waiting_actors_go(registry: RunRegistry) -> None:
    run, clock = config(), Clock()
    registry.set_desired_actors(1)
    hungry = AutoscaleHook(run, registry, filled(run, 64, 64), clock)
    hungry.look(1, 0.5)
    for _ in range(3):
        clock.now += 6
        hungry.look(1, 0.5)
    assert registry.desired_actors() == 2
    [event] = [e for e in registry.events() if e.kind == "autoscaled"]
    assert event.fields["desired"] == 2 and "the learner is about to wait" in event.message
    sated = AutoscaleHook(run, registry, filled(run, 256, 64), clock)
    for _ in range(4):
        sated.look(2, 1.0)
        clock.now += 6
    assert registry.desired_actors() == 1


def test_before_the_learner_draws_nothing_is_concluded(registry: RunRegistry) -> None:
    run, clock = config(), Clock()
    registry.set_desired_actors(1)
    hook = AutoscaleHook(run, registry, filled(run, 4, 0), clock)
    for _ in range(5):
        hook.look(1, 0.5)
        clock.now += 60
    assert registry.desired_actors() == 1


def test_a_spent_budget_stops_the_run_over_its_resumptions(registry: RunRegistry) -> None:
    run, clock = config(gpu_hours=1.0), Clock()
    registry.set_desired_actors(2)
    for _ in range(2):  # the run, and its resumption
        hook = AutoscaleHook(run, registry, filled(run, 64, 32), clock)
        hook.look(2, 1.0)
        clock.now += 1750
        hook.look(2, 1.0)
        assert registry.stop_requested() is None
        clock.now += 3600  # nobody looks, and no actor lives, between the two
    hook.look(2, 0.0)
    assert registry.stop_requested() is None
    clock.now += 200
    hook.look(2, 1.0)
    assert registry.stop_requested() == "1.03 GPU-hours used of 1"
