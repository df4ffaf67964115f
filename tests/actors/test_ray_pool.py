"""Actors on a real local Ray cluster and a real Redis: sampling, death by SIGKILL, scaling, stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.ray_actor import Rollout, actor_seed
from actors.ray_pool import RayPool
from actors.rollout import RolloutWorker
from posteriori import config as run_file
from posteriori.config import GoldConfig, RunConfig
from posteriori.errors import RewardError
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.registry import Component, RunRegistry
from replay.server import EmbeddedServer

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 180.0


def run_config(model: Path, **settings: Any) -> RunConfig:
    data: dict[str, Any] = {
        "run": "pool-test",
        "model": str(model),
        "problems": [
            {
                "name": "words",
                "kind": "tempered",
                "alphabet": [" cat", " dog", " ran", " slept"],
                "stop": ".",
                "max_tokens": 3,
                "prompts": [{"x": " the big"}],
            }
        ],
        "sampling": {"engine": "transformers", "actors": 1, "group_size": 4, "groups_in_flight": 2},
        "replay": {"slack_trajectories": 1_000_000},
        "learner": {"lora_rank": 8},
    }
    return run_file.parse(data | settings)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = EmbeddedServer(tmp_path / "redis", capacity_bytes=2**24)
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}},
    )
    yield
    ray.shutdown()


def until(pool: RayPool, condition: Callable[[], bool]) -> None:
    """Reconcile until a condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        assert pool.state.quarantine is None, pool.state.quarantine
        pool.reconcile()
        time.sleep(0.1)


def test_an_actor_runs_without_ray(tiny_lm_path: Path, redis_url: str, tmp_path: Path) -> None:
    config = run_config(tiny_lm_path)
    registry = RunRegistry(connect(redis_url), config.run)
    registry.request_stop("after the first heartbeat")
    parent = tmp_path / "actors"
    parent.mkdir()
    actor = Rollout(config.model_dump(mode="json"), redis_url, "actor-x-1", str(parent))
    assert actor.status() == {"state": "starting"}
    actor.run()
    assert actor.status()["groups_in_flight"] == 0
    assert registry.components()["actor-x-1"].fields["state"] == "sampling"
    assert list(parent.iterdir()) == []


def test_gold_is_stored_by_one_of_the_actors_of_a_run(
    tiny_lm_path: Path, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tiny_lm_path)
    words = config.problems[0].model_copy(update={"gold": GoldConfig(template=" cat ran")})
    config = config.model_copy(update={"problems": (words,)})
    client = connect(redis_url)
    RunRegistry(client, config.run).request_stop("after the first turn")
    stored: list[str] = []
    store_gold = RolloutWorker.store_gold

    def recorded(self: RolloutWorker, *arguments: Any) -> None:
        stored.append(arguments[1].id)
        store_gold(self, *arguments)

    monkeypatch.setattr(RolloutWorker, "store_gold", recorded)
    for name in ("actor-x-1", "actor-x-2"):
        actor = Rollout(config.model_dump(mode="json"), redis_url, name, str(tmp_path))
        actor.run()
        buffer = RedisBuffer(client, config.run, config.replay)
        drawn = [t for _ in range(100) for group in buffer.draw(1, 1).groups for t in group]
        assert {t.actor for t in drawn if t.behaviour == "gold"} == {"actor-x-1"}
    assert stored == ["0"]


def test_a_broken_reward_is_reported_as_the_end_of_the_run(
    tiny_lm_path: Path, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    config = run_config(tiny_lm_path)
    words = config.problems[0].model_copy(
        update={"kind": "python", "factory": "tests.actors.broken_problem:build", "terms": ()}
    )
    config = config.model_copy(update={"problems": (words,)})
    registry = RunRegistry(connect(redis_url), config.run)
    actor = Rollout(config.model_dump(mode="json"), redis_url, "actor-x-1", str(tmp_path))
    with pytest.raises(RewardError, match="'words'"):
        actor.run()
    failure = registry.failure()
    assert failure is not None
    assert failure.component == "actor-x-1"
    assert "nan at prefix" in failure.message


def test_seeds_differ_between_actors_and_runs() -> None:
    seeds = {actor_seed(run, f"actor-{n}") for run in range(5) for n in range(5)}
    assert len(seeds) == 25
    assert actor_seed(1, "actor-1") == actor_seed(1, "actor-1")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_actor_is_replaced_and_the_pool_follows_the_registry(
    ray_cluster: None, tiny_lm_path: Path, redis_url: str
) -> None:
    config = run_config(tiny_lm_path)
    client = connect(redis_url)
    registry = RunRegistry(client, config.run)
    buffer = RedisBuffer(client, config.run, config.replay)
    pool = RayPool(config, redis_url, registry)

    def sampling(actor_id: str) -> bool:
        component = registry.components().get(actor_id)
        return component is not None and int(component.fields.get("samples") or 0) > 0

    try:
        pool.reconcile()
        (first,) = pool.state.alive
        until(pool, lambda: sampling(first))
        pid = int(registry.components()[first].fields["pid"] or 0)
        os.kill(pid, signal.SIGKILL)
        until(pool, lambda: pool.state.restarts == 1)
        (second,) = pool.state.alive
        assert second != first
        assert first not in registry.components()
        taken = buffer.stats().inserted + buffer.stats().merged
        until(pool, lambda: sampling(second))
        until(pool, lambda: buffer.stats().inserted + buffer.stats().merged > taken)
        assert (pool.state.deaths, pool.state.restarts) == (1, 1)
        kinds = [event.kind for event in registry.events()]
        assert kinds == ["actor_started", "actor_died", "actor_started"]

        registry.set_desired_actors(2)
        until(pool, lambda: len(pool.state.alive) == 2)
        third = pool.state.alive[1]
        until(pool, lambda: sampling(third))
        registry.set_desired_actors(1)
        until(pool, lambda: pool.state.alive == (second,))
        assert pool.state.restarts == 1  # scaling is no restart
        registry.request_stop("the test is over")
        until(pool, lambda: pool.state.alive == ())
        assert pool.state.deaths == 1
    finally:
        pool.close()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_pool_grows_and_drains_by_itself(
    ray_cluster: None, tiny_lm_path: Path, redis_url: str
) -> None:
    """A learner that draws more than it may brings an actor, one that draws nothing sends it away."""
    config = run_config(
        tiny_lm_path,
        autoscale={"max_actors": 2, "hold_seconds": 0.5, "settle_seconds": 1},
        replay={"slack_trajectories": 128},
        learner={"lora_rank": 8, "prompts_per_step": 1, "trajectories_per_prompt": 8},
    )
    client = connect(redis_url)
    registry = RunRegistry(client, config.run)
    registry.set_desired_actors(1)
    buffer = RedisBuffer(client, config.run, config.replay)
    pool = RayPool(config, redis_url, registry)

    def hungry_until(condition: Callable[[], bool]) -> Callable[[], bool]:
        def draw() -> bool:
            while buffer.draw(1, 8).wait is None:
                pass
            return condition()

        return draw

    try:
        until(pool, hungry_until(lambda: len(pool.state.alive) == 2))
        first, second = pool.state.alive
        beats = registry.components
        until(pool, hungry_until(lambda: int(field(beats(), second, "inserted")) > 0))
        until(pool, lambda: pool.state.alive == (first,))
        assert pool.state.deaths == 0
        kinds = [event.kind for event in registry.events()]
        assert kinds == [
            "actor_started",
            "autoscaled",
            "actor_started",
            "autoscaled",
            "actor_stopped",
        ]
        assert registry.desired_actors() == 1
    finally:
        pool.close()


def field(components: Mapping[str, Component], actor_id: str, name: str) -> Any:
    """A field of an actor's last heartbeat, 0 before the first."""
    return components[actor_id].fields.get(name) or 0 if actor_id in components else 0


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_an_actor_that_cannot_start_stops_the_pool_with_its_cause(
    ray_cluster: None, tiny_lm_path: Path, redis_url: str, tmp_path: Path
) -> None:
    config = run_config(tmp_path / "no-model-here")
    registry = RunRegistry(connect(redis_url), config.run)
    pool = RayPool(config, redis_url, registry)
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while pool.state.quarantine is None and time.monotonic() < deadline:
            pool.reconcile()
            time.sleep(0.1)
        assert pool.state.quarantine is not None
        assert "no-model-here" in pool.state.quarantine
        assert pool.state.deaths == 1
        died = [event for event in registry.events() if event.kind == "actor_died"]
        assert len(died) == 1 and "no-model-here" in died[0].message
    finally:
        pool.close()
