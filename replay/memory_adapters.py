"""Adapter versions in one process: the same contract without a server."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from replay.adapter_files import (
    adapter_directory,
    check_publishable,
    checksum,
    never_published,
    not_newer,
    write_directory,
)


class MemoryAdapters:
    """In-memory twin of :class:`replay.redis_adapters.RedisAdapters`; safe for threads."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._files: dict[int, dict[str, bytes]] = {}
        self._pinned: set[int] = set()
        self._latest = 0

    def publish(self, version: int, files: Mapping[str, bytes]) -> None:
        """See :meth:`RedisAdapters.publish`."""
        check_publishable(version, files)
        with self._lock:
            if version <= self._latest:
                raise not_newer(version, self._latest)
            self._files[version] = dict(files)
            self._latest = version

    def latest(self) -> int:
        """Newest version ever published, 0 if none was."""
        return self._latest

    def versions(self) -> tuple[int, ...]:
        """Stored versions, ascending."""
        with self._lock:
            return tuple(sorted(self._files))

    def fetch(self, version: int, parent: Path) -> Path:
        """See :meth:`RedisAdapters.fetch`."""
        with self._lock:
            files = self._files.get(version)
        if files is None:
            raise never_published(version, self._latest)
        expected = checksum(files)
        directory = adapter_directory(self._run, version, expected, parent)
        if not directory.is_dir():
            write_directory(files, expected, directory)
        return directory

    def pin(self, version: int) -> None:
        """Keep a version whatever ``prune`` says."""
        with self._lock:
            self._pinned.add(version)

    def unpin(self, version: int) -> None:
        """Leave a version to ``prune`` again."""
        with self._lock:
            self._pinned.discard(version)

    def prune(self, keep_last: int) -> tuple[int, ...]:
        """Delete all but pinned and the last ``keep_last`` versions; return what was deleted."""
        with self._lock:
            stored = sorted(self._files)
            old = stored[: max(0, len(stored) - keep_last)]
            deleted = tuple(version for version in old if version not in self._pinned)
            for version in deleted:
                del self._files[version]
            return deleted
