"""What only a server can do to a buffer: die, fill up, hold rubbish, serve many at once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal

import pytest
import redis

from posteriori.errors import StorageFull, StorageUnreachable
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer, connect
from tests.replay.build import config, tokens_of, trajectory

NAMESPACE = "posteriori:{test}:replay"


def test_rubbish_is_removed_counted_and_survived(client: redis.Redis) -> None:
    buffer = RedisBuffer(client, "test", config(), seed=0)
    buffer.insert([trajectory([i]) for i in range(6)])
    ids = client.hkeys(f"{NAMESPACE}:payloads")
    client.hset(f"{NAMESPACE}:payloads", ids[0], b"rubbish")
    client.hset(f"{NAMESPACE}:payloads", ids[1], b"")
    client.hdel(f"{NAMESPACE}:payloads", ids[2])
    first = buffer.draw(1, 6)
    assert [row.producer for row in first.rejected] == ["actor-0"] * 3
    assert all("ot a trajectory" in row.reason for row in first.rejected)
    for _ in range(4):
        draw = buffer.draw(1, 6)
        [group] = draw.groups
        assert len(group) == 6 and not draw.rejected
    stats = buffer.stats()
    assert (stats.trajectories, stats.corrupt, stats.drawn) == (3, 3, 30)


def test_all_rubbish_is_an_empty_buffer(client: redis.Redis) -> None:
    buffer = RedisBuffer(client, "test", config())
    buffer.insert([trajectory([i]) for i in range(3)])
    for id_ in client.hkeys(f"{NAMESPACE}:payloads"):
        client.hset(f"{NAMESPACE}:payloads", id_, b"\x00")
    assert buffer.draw(1, 2).wait == "the buffer is empty"
    assert buffer.stats().corrupt == 3


def test_emptying_leaves_no_keys_behind(client: redis.Redis) -> None:
    buffer = RedisBuffer(client, "test", config(prioritised_share=1.0))
    buffer.insert([trajectory([i], prompt=f"x{i % 3}") for i in range(9)])
    buffer.draw(2, 2)
    buffer.drop_reward_versions_below(1)
    assert client.keys("*") == [f"{NAMESPACE}:counters".encode()]
    assert buffer.stats().payload_bytes == 0


def test_runs_do_not_see_each_other(client: redis.Redis) -> None:
    one, two = (RedisBuffer(client, run, config()) for run in ("one", "two"))
    one.insert([trajectory([1])])
    assert two.draw(1, 1).wait == "the buffer is empty"
    assert two.stats().trajectories == 0


def test_scripts_are_sent_again_to_a_server_that_forgot_them(client: redis.Redis) -> None:
    buffer = RedisBuffer(client, "test", config())
    buffer.insert([trajectory([1])])
    client.script_flush()
    assert buffer.insert([trajectory([2])]).inserted == 1


def insert_many(url: str, worker: int, batches: int) -> None:
    """Run in a process of its own."""
    buffer = RedisBuffer(connect(url), "test", config())
    for batch in range(batches):
        receipt = buffer.insert([trajectory([worker, batch, k], float(k)) for k in range(5)])
        assert receipt.inserted == 5


def test_two_processes_at_once_lose_nothing(
    redis_server: EmbeddedServer, client: redis.Redis
) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=insert_many, args=(redis_server.url, worker, 60))
        for worker in range(2)
    ]
    for process in workers:
        process.start()
    buffer = RedisBuffer(client, "test", config(prioritised_share=0.5))
    drawn = 0
    while any(process.is_alive() for process in workers):
        drawn += len(buffer.draw(1, 8).groups) * 8
    for process in workers:
        process.join()
        assert process.exitcode == 0
    stats = buffer.stats()
    assert (stats.inserted, stats.trajectories, stats.drawn) == (600, 600, drawn)
    [group] = RedisBuffer(client, "test", config()).draw(1, 600).groups
    expected = {(worker, batch, k) for worker in range(2) for batch in range(60) for k in range(5)}
    assert set(tokens_of(group)) == expected


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_killed_server_loses_nothing_acknowledged(own_server: EmbeddedServer, fsync: str) -> None:
    own_server.stop()
    own_server.fsync = fsync  # type: ignore[assignment]
    client = connect(own_server.start())
    buffer = RedisBuffer(client, "test", config(prioritised_share=0.5, capacity_per_prompt=50))
    for i in range(40):
        buffer.insert([trajectory([i, k], float(k), version=i) for k in range(3)])
    buffer.draw(1, 10)
    buffer.set_learner_version(39)
    before = buffer.stats()
    assert before.evicted == 70
    os.kill(own_server.pid, signal.SIGKILL)
    own_server._supervisor.wait()  # type: ignore[union-attr]
    assert not own_server.alive

    address = own_server.url
    assert own_server.start() == address  # clients find it again under the same address
    assert buffer.stats() == before
    assert buffer.insert([trajectory([99], version=41)]).evicted == 1
    drawn = {t for g in buffer.draw(3, 30).groups for t in tokens_of(g)}
    assert len(drawn) > 20


def test_a_server_that_is_gone_is_named(own_server: EmbeddedServer) -> None:
    client = connect(own_server.url, retries=0)
    buffer = RedisBuffer(client, "test", config())
    own_server.stop()
    with pytest.raises(StorageUnreachable, match=r"unix://.*redis\.sock does not answer"):
        buffer.insert([trajectory([1])])
    with pytest.raises(StorageUnreachable):
        buffer.draw(1, 1)
    with pytest.raises(StorageUnreachable):
        buffer.stats()


def test_the_buffer_makes_room_when_redis_is_full(own_server: EmbeddedServer) -> None:
    """Others share the memory: adapters, events. The buffer yields, and never half-writes."""
    client = connect(own_server.url)
    buffer = RedisBuffer(client, "test", config())
    for i in range(30):
        buffer.insert([trajectory([i, k] * 50, version=i) for k in range(8)])
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    receipt = buffer.insert([trajectory([99, k] * 50, version=99) for k in range(8)])
    assert receipt.wait is None
    assert (receipt.inserted, receipt.evicted) == (8, 16)
    stats = buffer.stats()
    assert stats.trajectories == 240 + 8 - 16
    assert stats.newest_version == 99


def test_actors_wait_when_redis_is_full_and_the_buffer_has_nothing(
    own_server: EmbeddedServer,
) -> None:
    client = connect(own_server.url)
    client.set("someone-else", b"x" * 2**20)
    client.config_set("maxmemory", 2**20)
    buffer = RedisBuffer(client, "test", config())
    receipt = buffer.insert([trajectory([1])])
    assert receipt.wait is not None and "maxmemory" in receipt.wait
    assert client.keys("posteriori*") == []
    client.config_set("maxmemory", 2**26)
    assert buffer.insert([trajectory([1])]).inserted == 1


def test_a_full_disk_is_named_and_recovered_from(own_server: EmbeddedServer) -> None:
    """A limit on the size of files stands in for a full disk: writes to the file fail alike."""
    client = connect(own_server.url)
    buffer = RedisBuffer(client, "test", config())
    buffer.insert([trajectory([0])])
    size = (own_server.directory / "appendonly.aof").stat().st_size
    limits = resource.prlimit(own_server.pid, resource.RLIMIT_FSIZE, (size + 100, -1))
    # The write that meets the limit is answered before its flush fails.
    buffer.insert([trajectory([1] * 100)])
    with pytest.raises(StorageFull, match="cannot write to its disk"):
        for i in range(2, 50):
            buffer.insert([trajectory([i] * 100)])
            client.ping()
    before = buffer.stats()
    resource.prlimit(own_server.pid, resource.RLIMIT_FSIZE, limits)
    while True:
        try:
            assert buffer.insert([trajectory([77])]).inserted == 1
            break
        except StorageFull:  # the server tries again once a second
            client.ping()
    assert buffer.stats().trajectories == before.trajectories + 1
