"""Every arrangement of Redis that an address can name, with real servers; and many runs on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from posteriori.config import ReplayConfig
from posteriori.errors import StorageUnreachable, UserError
from replay.address import resolve, without_password
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from tests.replay.build import trajectory
from tests.replay.servers import (
    certificates,
    free_port,
    sentinels,
    server,
    tls_front,
    tls_server_binary,
    wait_until,
)

PASSWORD = "open:sesame/@1"
QUOTED = "open%3Asesame%2F%401"


def use(client: redis.Redis, run: str = "r") -> None:
    """Everything a run does on Redis."""
    buffer = RedisBuffer(client, run, ReplayConfig(slack_trajectories=64), seed=0)
    assert buffer.insert([trajectory(tokens=[1, 2]), trajectory(tokens=[3])]).inserted == 2
    drawn = buffer.draw(1, 2)
    assert drawn.wait is None and len(drawn.groups[0]) == 2
    assert buffer.stats().trajectories == 2
    adapters = RedisAdapters(client, run)
    adapters.publish(1, {"adapter_config.json": b"{}"})
    assert adapters.latest() == 1 and adapters.prune(1) == ()
    registry = RunRegistry(client, run)
    registry.begin()
    registry.beat("actor-1", {"state": "sampling"})
    assert list(registry.components()) == ["actor-1"]
    registry.forget("actor-1")
    assert registry.components() == {}
    registry.event("published", "One.", version=1)
    assert registry.events()[0].fields == {"version": 1}
    assert registry.record(1, {"loss": 2.0}) and registry.recent(1) == {"loss": 2.0}
    assert registry.claim("task", "a", 10.0) == "yours"


def test_user_and_password(tmp_path: Path) -> None:
    ann = ("--user", "ann", "on", f">{PASSWORD}", "~posteriori:*", "+@all", "-@admin")
    rules = (*ann, "--user", "default", "off")
    with server(tmp_path, *rules) as port:
        use(connect(f"redis://ann:{QUOTED}@127.0.0.1:{port}/0", retries=0))
        for credentials in ("", "ann:wrong@", f":{QUOTED}@"):
            with pytest.raises(StorageUnreachable, match="refuses the credentials"):
                connect(f"redis://{credentials}127.0.0.1:{port}/0", retries=0)


@pytest.fixture(params=["terminator", "redis"])
def tls_port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server with TLS, its own or a terminator's; and its authority's certificate."""
    files = certificates(tmp_path)
    with ExitStack() as stack:
        if request.param == "terminator":
            plain = stack.enter_context(server(tmp_path / "redis", "--requirepass", PASSWORD))
            yield stack.enter_context(tls_front(plain, files)), files["ca"]
            return
        binary = tls_server_binary()
        if binary is None:
            pytest.skip("no redis-server on PATH that was built with TLS (Debian: redis-server)")
        port = free_port()
        stack.enter_context(
            server(
                tmp_path / "redis",
                *("--requirepass", PASSWORD, "--tls-port", str(port)),
                *("--tls-ca-cert-file", str(files["ca"]), "--tls-auth-clients", "no"),
                *("--tls-cert-file", str(files["certificate"])),
                *("--tls-key-file", str(files["key"])),
                binary=binary,
            )
        )
        yield port, files["ca"]


def test_tls(tls_port: tuple[int, Path]) -> None:
    port, authority = tls_port
    address = f"rediss://:{QUOTED}@127.0.0.1:{port}/0"
    use(connect(f"{address}?ssl_ca_certs={authority}", retries=0))
    with pytest.raises(StorageUnreachable, match="certificate verify failed"):
        connect(address, retries=0)  # an authority nobody here trusts
    with pytest.raises(StorageUnreachable):
        connect(address.replace("rediss", "redis"), retries=0)


@pytest.mark.slow
def test_sentinels_find_the_server_and_its_successor(tmp_path: Path) -> None:
    secret = ("--requirepass", "pw", "--masterauth", "pw")
    with ExitStack() as stack:
        one = ExitStack()
        first = one.enter_context(server(tmp_path / "one", *secret))
        stack.callback(one.close)
        second = stack.enter_context(
            server(tmp_path / "two", *secret, "--replicaof", "127.0.0.1", str(first))
        )
        replica = redis.Redis(port=second, password="pw")
        wait_until(
            lambda: replica.info("replication")["master_link_status"] == "up", "the replication"
        )
        ports = stack.enter_context(sentinels(tmp_path, first, 1, "pw"))
        where = ",".join(f"127.0.0.1:{port}" for port in ports)
        address = f"redis+sentinel://:pw@{where}/main/0"
        client = connect(address, patience_seconds=60.0)
        use(client)
        watcher = redis.Redis(port=ports[0])
        wait_until(
            lambda: watcher.sentinel_master("main")["num-slaves"] == 1, "the sentinel's replica"
        )
        wait_until(
            lambda: replica.info("replication")["slave_repl_offset"] > 0 and replica.dbsize() > 3,
            "the copy",
        )
        one.close()  # SIGKILL of the primary
        buffer = RedisBuffer(client, "r", ReplayConfig(slack_trajectories=64))
        assert buffer.insert([trajectory(tokens=[7])]).inserted == 1
        assert redis.Redis(port=second, password="pw").info("replication")["role"] == "master"
        assert buffer.stats().trajectories == 3
    with pytest.raises(UserError, match="is not an address"):
        connect("redis+sentinel://:pw@127.0.0.1:1", retries=0)
    with pytest.raises(StorageUnreachable) as caught:
        connect("redis+sentinel://:pw@127.0.0.1:1/main", retries=0)
    assert "pw" not in str(caught.value)


def test_a_cluster(tmp_path: Path) -> None:
    with server(tmp_path, "--cluster-enabled", "yes", "--requirepass", "pw") as port:
        node = redis.Redis(port=port, password="pw")
        node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        wait_until(lambda: node.cluster("info")["cluster_state"] == "ok", "the cluster")
        client = connect(f"redis+cluster://:pw@127.0.0.1:{port}", retries=0)
        use(client)
        use(client, "another")
        keys = [key.decode() for key in node.keys("*")]
        slots = {key_slot(key.encode()) for key in keys if "{r}" in key}
        assert len(slots) == 1 and len(keys) > 20
        assert slots != {key_slot(key.encode()) for key in keys if "{another}" in key}
    with pytest.raises(StorageUnreachable) as caught:
        connect(f"redis+cluster://:pw@127.0.0.1:{port}", retries=0)
    assert "pw" not in str(caught.value)


def test_several_runs_share_one_server(client: redis.Redis) -> None:
    for run in ("a", "b", "a-longer"):
        use(client, run)
    config = ReplayConfig(slack_trajectories=64)
    assert RedisBuffer(client, "a", config).insert([trajectory(tokens=[9])]).inserted == 1
    assert RedisBuffer(client, "b", config).stats().trajectories == 2
    assert RedisBuffer(client, "a-longer", config).stats().trajectories == 2
    assert RedisAdapters(client, "b").latest() == 1
    assert {key.split(b":")[1] for key in client.keys("*")} == {b"{a}", b"{b}", b"{a-longer}"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"POSTERIORI_REDIS_URL": "redis://h:1/0"}, "redis://h:1/0"),
        (
            {"POSTERIORI_REDIS_URL": "redis://h:1/0", "POSTERIORI_REDIS_PASSWORD": PASSWORD},
            f"redis://:{QUOTED}@h:1/0",
        ),
        (
            {"POSTERIORI_REDIS_URL": "rediss://ann@h:1/0?x=y", "POSTERIORI_REDIS_PASSWORD": "pw"},
            "rediss://ann:pw@h:1/0?x=y",
        ),
        (
            {"POSTERIORI_REDIS_URL": "redis://ann:own@h:1/0", "POSTERIORI_REDIS_PASSWORD": "pw"},
            "redis://ann:own@h:1/0",
        ),
    ],
)
def test_an_address_from_the_environment(variables: dict[str, str], found: str) -> None:
    assert resolve("environment", variables) == found
    assert resolve("redis://other:1", variables) == "redis://other:1"
    for secret in (PASSWORD, QUOTED, "pw", "own"):
        assert secret not in without_password(found)


def test_a_password_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    variables = {
        "POSTERIORI_REDIS_URL": "redis://h:1/0",
        "POSTERIORI_REDIS_PASSWORD_FILE": str(file),
    }
    with pytest.raises(UserError, match="Cannot read POSTERIORI_REDIS_PASSWORD_FILE"):
        resolve("environment", variables)
    file.write_text("pw\n")
    assert resolve("environment", variables) == "redis://:pw@h:1/0"
    with pytest.raises(UserError, match="POSTERIORI_REDIS_URL is not set"):
        resolve("environment", {})
