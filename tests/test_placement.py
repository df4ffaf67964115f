"""What a run asks of a cluster, and what is said where the cluster has too little."""

from __future__ import annotations

from typing import Any

import pytest

from posteriori import config as run_file
from posteriori.commands.cluster import (
    START_ATTEMPTS,
    connected,
    refuse_lonely_redis,
    refuse_open_cluster,
)
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.placement import Asked, Room, asked, check_room


def config(**sections: dict[str, Any]) -> RunConfig:
    problem = {"name": "p", "kind": "tempered", "prompts": [{"x": "a"}], "max_tokens": 2}
    return run_file.parse({"run": "r", "dtype": "bfloat16", "problems": [problem], **sections})


def rooms(found: list[Asked]) -> list[tuple[float, float]]:
    return [(item.room.cpus, item.room.gpus) for item in found]


def test_the_learner_takes_a_gpu_that_actors_leave() -> None:
    run = config(sampling={"actors": 2, "gpus_per_actor": 0.5})
    assert rooms(asked(run, 2))[0] == (1, 1)
    assert rooms(asked(run, 1))[0] == (1, 0)
    run = config(sampling={"actors": 2, "gpus_per_actor": 0.5}, learner={"device": "cuda"})
    assert rooms(asked(run, 1))[0] == (1, 1)
    run = config(learner={"device": "cpu"})
    assert rooms(asked(run, 8))[0] == (1, 0)


def test_cpu_actors_beside_gpu_ones() -> None:
    run = config(
        sampling={"actors": 3, "gpus_per_actor": 0.5, "threads": 4},
        placement={"gpu_actors": 2, "learner_gpus": 0, "learner_cpus": 2},
    )
    assert rooms(asked(run, 1)) == [(2, 0), (4, 0.5), (4, 0.5), (4, 0)]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([Room(64, 4)], "asked for 8 GPUs, the cluster has 4"),
        ([Room(4, 8)], "asked for 9 CPUs, the cluster has 4"),
        ([Room(16, 7), Room(1, 1)], None),
        ([Room(16, 7), Room(0.5, 1)], "No node has room for rollout actor"),
    ],
)
def test_room(nodes: list[Room], said: str | None) -> None:
    wanted = asked(
        config(sampling={"actors": 8, "gpus_per_actor": 1}, placement={"learner_gpus": 0}), 8
    )
    if said is None:
        check_room(wanted, nodes)
        return
    with pytest.raises(UserError, match=said) as refused:
        check_room(wanted, nodes)
    assert "sampling.actors" in refused.value.fix


def test_thirds_of_a_gpu_fit() -> None:
    third = Asked("an actor", Room(1, 1 / 3))
    check_room([third] * 3, [Room(3, 1)])
    with pytest.raises(UserError):
        check_room([third] * 4, [Room(4, 1)])


@pytest.mark.parametrize(
    "sections",
    [
        {"placement": {"gpu_actors": 1}},
        {"learner": {"device": "cuda"}, "placement": {"learner_gpus": 0}},
        {"placement": {"learner_cpu": 1}},
    ],
)
def test_placements_that_contradict_themselves(sections: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="placement"):
        config(**sections)


def nodes(*addresses: str) -> list[dict[str, Any]]:
    return [{"NodeManagerAddress": address, "Alive": True} for address in addresses]


def test_a_cluster_that_lets_anyone_in_is_refused() -> None:
    with pytest.raises(UserError, match="lets anyone who reaches its ports run programs"):
        refuse_open_cluster(nodes("127.0.0.1", "192.0.2.1"), "")
    with pytest.raises(UserError, match="RAY_AUTH_MODE=token"):
        refuse_open_cluster(nodes("192.0.2.1"), "disabled")
    refuse_open_cluster(nodes("192.0.2.1"), "token")
    refuse_open_cluster(nodes("127.0.0.1"), "")


def test_several_machines_need_a_redis_they_reach() -> None:
    with pytest.raises(UserError, match="embedded Redis serves one machine"):
        refuse_lonely_redis(nodes("192.0.2.1", "192.0.2.2"), config())
    refuse_lonely_redis(nodes("192.0.2.1", "192.0.2.1"), config())
    refuse_lonely_redis(
        nodes("192.0.2.1", "192.0.2.2"), config(replay={"redis_url": "environment"})
    )


LATE = (
    "The current node timed out during startup. This could happen because some of the raylet failed"
)


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3), (9, START_ATTEMPTS)])
def test_ray_is_started_again_where_it_starts_too_late(
    failures: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives a node thirty seconds, which a test cannot have it miss at will."""
    import ray

    asked_to: list[str] = []

    def init(**options: Any) -> None:
        asked_to.append(options["address"])
        if len(asked_to) <= failures:
            raise Exception(LATE)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: asked_to.append("end"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if failures < START_ATTEMPTS:
        with connected():
            pass
        assert asked_to == ["local"] * starts + ["end"]
    else:
        with (
            pytest.raises(UserError, match="did not start on this machine in 4 attempts"),
            connected(),
        ):
            pass
        assert asked_to == ["local"] * starts
