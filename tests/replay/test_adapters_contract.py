"""What every adapter store must do, whatever it is made of."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import redis

from posteriori.errors import CorruptPayload, StorageFull, UserError
from posteriori.seams import AdapterStore
from replay.redis_adapters import RedisAdapters
from replay.server import EmbeddedServer, connect

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 40}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_is_an_adapter_store(adapters: AdapterStore) -> None:
    assert isinstance(adapters, AdapterStore)


def test_what_is_published_is_fetched(adapters: AdapterStore, tmp_path: Path) -> None:
    assert (adapters.latest(), adapters.versions()) == (0, ())
    adapters.publish(1, FILES)
    adapters.publish(4, {**FILES, "README.md": b"four"})
    assert (adapters.latest(), adapters.versions()) == (4, (1, 4))
    parent = tmp_path / "not" / "there"
    first, fourth = adapters.fetch(1, parent), adapters.fetch(4, parent)
    assert contents(first) == FILES
    assert contents(fourth) == {**FILES, "README.md": b"four"}
    assert first.parent == fourth.parent == parent
    assert sorted(p.name for p in parent.iterdir()) == sorted([first.name, fourth.name])


def test_a_fetched_directory_is_not_written_again(adapters: AdapterStore, tmp_path: Path) -> None:
    adapters.publish(1, FILES)
    first = adapters.fetch(1, tmp_path)
    inode = first.stat().st_ino
    assert adapters.fetch(1, tmp_path) == first
    assert first.stat().st_ino == inode


def test_fetching_from_several_threads_at_once(adapters: AdapterStore, tmp_path: Path) -> None:
    adapters.publish(1, FILES)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(adapters.fetch(1, tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert contents(found[0]) == FILES
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


@pytest.mark.parametrize("version", [2, 3])
def test_versions_only_grow(adapters: AdapterStore, version: int) -> None:
    adapters.publish(3, FILES)
    with pytest.raises(UserError, match=f"version {version} is not greater than the latest, 3"):
        adapters.publish(version, FILES)
    assert adapters.versions() == (3,)


def test_a_pruned_version_is_never_reused(adapters: AdapterStore, tmp_path: Path) -> None:
    adapters.publish(1, FILES)
    assert adapters.prune(0) == (1,)
    assert (adapters.latest(), adapters.versions()) == (1, ())
    with pytest.raises(UserError, match="not greater than the latest, 1"):
        adapters.publish(1, FILES)
    with pytest.raises(UserError, match="has been pruned"):
        adapters.fetch(1, tmp_path)


def test_prune_keeps_pinned_ones_and_the_last(adapters: AdapterStore, tmp_path: Path) -> None:
    for version in range(1, 8):
        adapters.publish(version, FILES)
    adapters.pin(2)
    adapters.pin(6)
    assert adapters.prune(3) == (1, 3, 4)
    assert adapters.versions() == (2, 5, 6, 7)
    assert adapters.prune(3) == ()
    assert contents(adapters.fetch(2, tmp_path)) == FILES
    adapters.unpin(2)
    assert adapters.prune(3) == (2,)
    assert adapters.prune(99) == ()


def test_a_version_nobody_published(adapters: AdapterStore, tmp_path: Path) -> None:
    adapters.publish(1, FILES)
    with pytest.raises(UserError, match="version 2 was never published; the newest is 1"):
        adapters.fetch(2, tmp_path)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_start_at_one(adapters: AdapterStore, version: int) -> None:
    with pytest.raises(UserError, match="start at 1"):
        adapters.publish(version, FILES)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/b", ".hidden", "..", "", "a\0b", "a\n"]
)
def test_unsafe_names_are_refused(adapters: AdapterStore, name: str) -> None:
    with pytest.raises(UserError, match="has a file named"):
        adapters.publish(1, {**FILES, name: b""})
    assert adapters.latest() == 0


def test_nothing_to_publish(adapters: AdapterStore) -> None:
    with pytest.raises(UserError, match="no files"):
        adapters.publish(1, {})


class TestOnRedis:
    files_key = "posteriori:{test}:adapters:files:1"

    @pytest.mark.parametrize(
        ("name", "content"), [("adapter_config.json", b"{ }"), ("../../evil", b"")]
    )
    def test_tampered_files_are_refused(
        self, client: redis.Redis, tmp_path: Path, name: str, content: bytes
    ) -> None:
        store = RedisAdapters(client, "test")
        store.publish(1, FILES)
        client.hset(self.files_key, name, content)
        with pytest.raises(CorruptPayload, match="do not match their checksum"):
            store.fetch(1, tmp_path / "cache")
        assert list(tmp_path.rglob("*")) in ([], [tmp_path / "cache"])

    def test_a_repeated_attempt_is_not_an_error(self, client: redis.Redis) -> None:
        """The client asks again when a reply was lost: the same call, with the same token."""
        store = RedisAdapters(client, "test")
        sent: list[list[bytes | str | int]] = []
        publish = store._publish

        def remember(keys: list[str], args: list[bytes | str | int]) -> object:
            sent.append(args)
            return publish(keys=keys, args=args)

        store._publish = remember  # type: ignore[assignment]
        store.publish(1, FILES)
        assert publish(keys=["posteriori:{test}:adapters"], args=sent[0]) == [1]
        with pytest.raises(UserError, match="not greater"):
            store.publish(1, FILES)

    def test_versions_survive_a_killed_server(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        store = RedisAdapters(connect(own_server.url), "test")
        for version in (1, 2, 3):
            store.publish(version, FILES)
        store.pin(1)
        store.prune(1)
        os.kill(own_server.pid, signal.SIGKILL)
        own_server._supervisor.wait()  # type: ignore[union-attr]
        own_server.start()
        assert (store.latest(), store.versions()) == (3, (1, 3))
        assert contents(store.fetch(1, tmp_path / "cache")) == FILES
        with pytest.raises(UserError, match="not greater"):
            store.publish(3, FILES)

    def test_a_full_server_publishes_nothing(self, own_server: EmbeddedServer) -> None:
        client = connect(own_server.url)
        store = RedisAdapters(client, "test")
        client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
        with pytest.raises(StorageFull, match="maxmemory"):
            store.publish(1, FILES)
        assert (store.latest(), client.keys("posteriori*")) == (0, [])
