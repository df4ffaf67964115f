"""One real redis-server for all replay tests, emptied before each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from posteriori.config import ReplayConfig
from posteriori.seams import AdapterStore, Buffer
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer, connect
from replay.sharded_buffer import ShardedBuffer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server shared by the session; tests that harm theirs start their own."""
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), capacity_bytes=2**26) as server:
        yield server


@pytest.fixture(scope="session")
def session_client(redis_server: EmbeddedServer) -> redis.Redis:
    return connect(redis_server.url)


@pytest.fixture
def client(session_client: redis.Redis) -> redis.Redis:
    """A client of the empty server."""
    session_client.flushall()
    return session_client


@pytest.fixture(scope="session")
def second_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A client of another server."""
    with EmbeddedServer(tmp_path_factory.mktemp("redis-2"), capacity_bytes=2**26) as server:
        yield connect(server.url)


class Buffers:
    """Makes buffers of one kind with a configuration: in memory, on one server, or on several."""

    def __init__(self, *clients: redis.Redis | None) -> None:
        self.clients = [client for client in clients if client is not None]

    def __call__(self, config: ReplayConfig, seed: int | None = 0) -> Buffer:
        if not self.clients:
            return MemoryBuffer(config, seed)
        for client in self.clients:
            client.flushall()
        if len(self.clients) > 1:
            return ShardedBuffer(self.clients, "test", config, seed)
        return RedisBuffer(self.clients[0], "test", config, seed)


@pytest.fixture(params=["memory", "redis", "two servers"])
def buffers(request: pytest.FixtureRequest) -> Buffers:
    if request.param == "memory":
        return Buffers()
    client = request.getfixturevalue("client")
    if request.param == "two servers":
        return Buffers(client, request.getfixturevalue("second_client"))
    return Buffers(client)


@pytest.fixture(params=["memory", "redis"])
def adapters(request: pytest.FixtureRequest) -> AdapterStore:
    if request.param == "memory":
        return MemoryAdapters("test")
    return RedisAdapters(request.getfixturevalue("client"), "test")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be killed at will."""
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26) as server:
        yield server
