"""Adapter versions on Redis, as bytes: learner and actors share no file system."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import redis

from replay.adapter_files import (
    adapter_directory,
    check_publishable,
    checksum,
    never_published,
    not_newer,
    write_directory,
)
from replay.connection import storage_errors
from replay.scripts import load_script


class RedisAdapters:
    """Immutable adapter versions of one run; see :class:`seams.AdapterStore`.

    Args:
        client: from :func:`replay.connection.connect`.
        run: name of the run; all keys lie under ``posteriori:{run}:adapters``.
    """

    def __init__(self, client: redis.Redis, run: str) -> None:
        self._client = client
        self._run = run
        self._namespace = f"posteriori:{{{run}}}:adapters"
        self._publish = load_script(client, "publish")
        self._prune = load_script(client, "prune")

    def publish(self, version: int, files: Mapping[str, bytes]) -> None:
        """Make a PEFT directory's files available under a new version, atomically.

        Raises:
            UserError: the version is not greater than the latest, or a file name is unsafe.
            StorageFull, StorageUnreachable
        """
        check_publishable(version, files)
        pairs = [part for name, content in files.items() for part in (name, content)]
        with storage_errors(self._client):
            status, *latest = self._publish(
                keys=[self._namespace],
                args=[version, checksum(files), secrets.token_hex(8), *pairs],
            )
        if status == 0:
            raise not_newer(version, latest[0])

    def latest(self) -> int:
        """Newest version ever published, 0 if none was."""
        with storage_errors(self._client):
            return int(self._client.get(f"{self._namespace}:latest") or 0)

    def versions(self) -> tuple[int, ...]:
        """Stored versions, ascending."""
        with storage_errors(self._client):
            members = cast(list[bytes], self._client.zrange(f"{self._namespace}:versions", 0, -1))
        return tuple(int(member) for member in members)

    def fetch(self, version: int, parent: Path) -> Path:
        """Write the version's files into a new directory below ``parent`` and return it.

        A directory that is there already is returned as it is.

        Raises:
            UserError: the version was never published or has been pruned.
            CorruptPayload: the stored bytes do not match their checksum.
            StorageFull, StorageUnreachable
        """
        with storage_errors(self._client):
            manifest = self._client.hget(f"{self._namespace}:manifest:{version}", "checksum")
        if manifest is None:
            raise never_published(version, self.latest())
        expected = cast(bytes, manifest).decode()
        directory = adapter_directory(self._run, version, expected, parent)
        if directory.is_dir():
            return directory
        with storage_errors(self._client):
            stored = cast(
                dict[bytes, bytes], self._client.hgetall(f"{self._namespace}:files:{version}")
            )
        if not stored:  # pruned since the line above
            raise never_published(version, self.latest())
        files = {name.decode("utf-8", "replace"): content for name, content in stored.items()}
        write_directory(files, expected, directory)
        return directory

    def pin(self, version: int) -> None:
        """Keep a version (checkpoint, served) whatever ``prune`` says."""
        with storage_errors(self._client):
            self._client.sadd(f"{self._namespace}:pinned", str(version))

    def unpin(self, version: int) -> None:
        """Leave a version to ``prune`` again."""
        with storage_errors(self._client):
            self._client.srem(f"{self._namespace}:pinned", str(version))

    def prune(self, keep_last: int) -> tuple[int, ...]:
        """Delete all but pinned and the last ``keep_last`` versions; return what was deleted."""
        with storage_errors(self._client):
            return tuple(self._prune(keys=[self._namespace], args=[keep_last]))
