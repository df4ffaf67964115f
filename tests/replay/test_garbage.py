"""Leases, dead runs on a shared server, and servers that strangers could use."""

from __future__ import annotations

import time
from io import StringIO
from pathlib import Path

import pytest
import redis
from rich.console import Console

from posteriori.commands.gc import gc
from posteriori.commands.lease import held
from posteriori.errors import UserError
from posteriori.fitted_reward import store_name
from replay.connection import connect
from replay.exposure import refuse_open
from replay.garbage import REWARD_SUFFIX, remove, survey
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from replay.server import EmbeddedServer
from tests.replay.servers import server
from tests.replay.test_addresses import use


def keys_of(client: redis.Redis, run: str) -> int:
    return len(client.keys(f"posteriori:{{{run}}}*")) + len(
        client.keys(f"posteriori:{{{store_name(run)}}}*")
    )


def fill(client: redis.Redis, *runs: str) -> None:
    for run in runs:
        use(client, run)
        RedisAdapters(client, store_name(run)).publish(1, {"adapter_config.json": b"{}"})
        assert RunRegistry(client, run).hold("somebody", 60.0) == "yours"
        RunRegistry(client, run).release()


def collect(url: str, *runs: str, really: bool = True) -> str:
    console = Console(file=StringIO(), width=120)
    gc(url, runs, really, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_dead_runs_go_and_living_ones_stay(
    client: redis.Redis, redis_server: EmbeddedServer
) -> None:
    fill(client, "dead", "held", "beating", "other")
    RunRegistry(client, "held").hold("somebody", 60.0)
    RunRegistry(client, "beating").beat("learner", {})
    before = {run: keys_of(client, run) for run in ("dead", "held", "beating", "other")}
    client.set("somebody-else", "1")
    assert {remains.run: remains.live for remains in survey(client)} == {
        "dead": False,
        "held": True,
        "beating": True,
        "other": False,
    }
    said = collect(redis_server.url, really=False)
    assert "would be removed" in said and "--yes" in said
    assert {run: keys_of(client, run) for run in before} == before
    for run in ("held", "beating"):
        with pytest.raises(UserError, match="lives"):
            collect(redis_server.url, run)
        assert remove(client, run) == 0
    collect(redis_server.url, "dead")
    assert keys_of(client, "dead") == 0 and keys_of(client, "other") == before["other"]
    with pytest.raises(UserError, match="no run 'dead'"):
        collect(redis_server.url, "dead")
    collect(redis_server.url)
    assert [remains.run for remains in survey(client)] == ["beating", "held"]
    assert keys_of(client, "held") == before["held"]
    assert client.get("somebody-else") == b"1"


def test_a_shard_does_not_know_who_lives(client: redis.Redis, redis_server: EmbeddedServer) -> None:
    use(client, "sharded")  # trajectories, and no registry that a driver ever held
    assert "unknown" in collect(redis_server.url)
    assert keys_of(client, "sharded") > 0
    collect(redis_server.url, "sharded")
    assert keys_of(client, "sharded") == 0


def test_a_lease_ends_by_the_servers_clock(client: redis.Redis) -> None:
    registry = RunRegistry(client, "r")
    assert registry.hold("me", 0.05) == "yours" and registry.held()
    assert registry.hold("another", 60.0) == "held"
    deadline = time.monotonic() + 10
    while registry.held():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert registry.hold("another", 60.0) == "left"
    assert registry.hold("me", 60.0) == "yours"  # the same directory, resumed


def test_a_lease_is_renewed_on_a_full_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, 2**20, maxmemory_bytes=2**21) as full:
        client = connect(full.url)
        registry = RunRegistry(client, "r")
        assert registry.hold("me", 60.0) == "yours"
        client.config_set("maxmemory", "1")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("more", "1")
        client.pexpire("posteriori:{r}:registry:lease", 1000)
        assert registry.hold("me", 60.0) == "yours"
        assert client.pttl("posteriori:{r}:registry:lease") > 30_000


def test_two_runs_of_one_name_are_kept_apart(client: redis.Redis) -> None:
    registry = RunRegistry(client, "r")
    with held(registry, "r", "me"):
        with pytest.raises(UserError, match="is running on this Redis"), held(registry, "r", "you"):
            pass
        assert registry.held()
    assert not registry.held()
    with pytest.raises(UserError, match=r"has left its data.*posteriori gc r"):
        held(registry, "r", "you").__enter__()
    with held(registry, "r", "me"):
        pass
    remove(client, "r")
    with held(registry, "r", "you"):
        assert registry.held()


def test_the_suffix_of_reward_stores() -> None:
    assert store_name("run") == f"run{REWARD_SUFFIX}"


def test_a_server_that_lets_strangers_in_is_refused(tmp_path: Path) -> None:
    with server(tmp_path, "--protected-mode", "no") as port:
        url = f"redis://127.0.0.1:{port}/0"
        client = connect(url)
        refuse_open(client, url)  # bound to loopback
        client.config_set("protected-mode", "no")
        for elsewhere in ("redis://10.1.2.3:6379/0", "redis+cluster://a.example:6379"):
            with pytest.raises(UserError, match="asks for no password"):
                refuse_open(client, elsewhere)
        for named in ("redis://:pw@10.1.2.3:6379/0", "rediss://10.1.2.3:1/0?ssl_certfile=x"):
            refuse_open(client, named)


def test_a_server_bound_everywhere_is_refused(tmp_path: Path) -> None:
    # What it says of itself decides; it never listens beyond loopback here.
    class Open(redis.Redis):
        def config_get(self, *_: object, **__: object) -> dict[str, str]:  # type: ignore[override]
            return self.answer

    client = Open()
    for answer, is_open in (
        ({"bind": "0.0.0.0", "protected-mode": "no"}, True),
        ({"bind": "", "protected-mode": "no"}, True),
        ({"bind": "127.0.0.1 192.0.2.7", "protected-mode": "no"}, True),
        ({"bind": "127.0.0.1 -::1", "protected-mode": "no"}, False),
        ({"bind": "* -::*", "protected-mode": "yes"}, False),
    ):
        client.answer = answer  # type: ignore[attr-defined]
        if is_open:
            with pytest.raises(UserError, match="asks for no password"):
                refuse_open(client, "redis://127.0.0.1:6379/0")
        else:
            refuse_open(client, "redis://127.0.0.1:6379/0")
