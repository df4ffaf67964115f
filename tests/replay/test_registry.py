"""The noticeboard of a run, on a real server."""

from __future__ import annotations

import pytest
import redis

from posteriori.errors import UserError
from replay.registry import BEGINNING, Failure, RunRegistry


@pytest.fixture
def registry(client: redis.Redis) -> RunRegistry:
    return RunRegistry(client, "test")


def test_heartbeats_carry_state_and_age(registry: RunRegistry, client: redis.Redis) -> None:
    assert registry.components() == {}
    registry.beat("learner", {"state": "waiting", "step": 3, "loss": 0.5, "done": False, "x": None})
    registry.beat("actor-0", {"state": "sampling"})
    seconds, _ = client.time()
    # An hour ago, by the server's clock.
    client.hset("posteriori:{test}:registry:beats", "actor-0", str(seconds - 3600))
    parts = registry.components()
    assert list(parts) == ["actor-0", "learner"]
    assert parts["learner"].fields == {
        "state": "waiting", "step": 3, "loss": 0.5, "done": False, "x": None,
    }  # fmt: skip
    assert parts["actor-0"].age_seconds >= 3600
    assert 0 <= parts["learner"].age_seconds < parts["actor-0"].age_seconds - 3000
    registry.beat("actor-0", {"state": "idle"})
    assert registry.components()["actor-0"].fields == {"state": "idle"}
    assert registry.components()["actor-0"].age_seconds < 3000
    registry.forget("actor-0")
    assert list(registry.components()) == ["learner"]


def test_events_are_read_from_where_one_left(registry: RunRegistry) -> None:
    first = registry.event("started", "The run began.", actors=2, model="pocket")
    second = registry.event("published", "Version 1.", version=1)
    assert [event.id for event in registry.events()] == [first, second]
    [event] = registry.events(after_id=first)
    assert (event.kind, event.message, event.fields) == ("published", "Version 1.", {"version": 1})
    assert event.unix_seconds > 1.6e9
    assert registry.events(after_id=second) == []
    assert [event.id for event in registry.events(BEGINNING, limit=1)] == [first]
    with pytest.raises(UserError, match="'rubbish' is not the id of an entry"):
        registry.events("rubbish")


def test_events_are_bounded(
    registry: RunRegistry, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.registry.EVENTS_KEPT", 100)
    for number in range(500):
        last = registry.event("tick", "", number=number)
    kept = registry.events()
    assert 100 <= len(kept) < 300  # cut by whole blocks
    assert kept[-1].id == last


def test_history_of_metrics(registry: RunRegistry) -> None:
    first = registry.record(1, {"loss": 2.0, "log_z": -3})
    registry.record(2, {"loss": float("nan")})
    rows = registry.history()
    assert [row.step for row in rows] == [1, 2]
    assert rows[0].metrics == {"loss": 2.0, "log_z": -3.0}
    assert rows[1].metrics["loss"] != rows[1].metrics["loss"]
    assert [row.step for row in registry.history(after_id=first)] == [2]


def test_desired_actors(registry: RunRegistry) -> None:
    assert registry.desired_actors() is None
    registry.set_desired_actors(0)
    assert registry.desired_actors() == 0
    registry.set_desired_actors(7)
    assert registry.desired_actors() == 7
    with pytest.raises(UserError, match="-1 rollout actors"):
        registry.set_desired_actors(-1)


def test_stop_request(registry: RunRegistry) -> None:
    assert registry.stop_requested() is None
    registry.request_stop("asked by the user")
    registry.request_stop("again")
    assert registry.stop_requested() == "asked by the user"


def test_the_first_cause_wins(registry: RunRegistry, client: redis.Redis) -> None:
    assert registry.failure() is None
    registry.fail("actor-1", "The reward returned NaN.")
    RunRegistry(client, "test").fail("learner", "No trajectories arrive.")
    assert registry.failure() == Failure("actor-1", "The reward returned NaN.")


def test_a_new_attempt_forgets_the_end_of_the_last_but_not_its_past(registry: RunRegistry) -> None:
    registry.fail("learner", "Out of memory.")
    registry.request_stop("failure")
    registry.beat("learner", {})
    registry.event("failed", "Out of memory.")
    registry.record(1, {"loss": 1.0})
    registry.set_desired_actors(3)
    registry.begin()
    assert registry.failure() is None
    assert registry.stop_requested() is None
    assert registry.components() == {}
    assert len(registry.events()) == len(registry.history()) == 1
    assert registry.desired_actors() == 3


def test_runs_do_not_see_each_other(registry: RunRegistry, client: redis.Redis) -> None:
    registry.fail("learner", "x")
    registry.beat("learner", {})
    other = RunRegistry(client, "other")
    assert other.failure() is None
    assert other.components() == {}


def test_a_task_is_done_once_though_its_holder_dies(
    registry: RunRegistry, client: redis.Redis
) -> None:
    assert registry.claim("gold", "actor-0", lease_seconds=60) == "yours"
    assert registry.claim("gold", "actor-0", lease_seconds=60) == "yours"
    assert registry.claim("gold", "actor-1", lease_seconds=60) == "taken"
    client.delete("posteriori:{test}:registry:task:gold")  # as when the lease runs out
    assert registry.claim("gold", "actor-1", lease_seconds=60) == "yours"
    lease = client.pttl("posteriori:{test}:registry:task:gold")
    assert 0 < lease <= 60_000
    registry.settle("gold")
    registry.begin()  # a resumed run
    assert registry.claim("gold", "actor-1", lease_seconds=60) == "done"
    assert client.pttl("posteriori:{test}:registry:task:gold") == -1
