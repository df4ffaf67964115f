"""Keeps an engine at the newest published adapter while it samples."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from posteriori.errors import UserError
from posteriori.seams import AdapterStore, Engine

ADAPTER_SLOTS = 3
"""The version in force, its predecessor under requests in flight, and the one being taken up."""


class AdapterFollower:
    """Loads newer versions between engine steps; requests in flight keep the one they began with.

    Args:
        engine: with ``ADAPTER_SLOTS`` adapter slots.
        store: where versions are published.
        directory: the follower's own; versions are written below it and deleted again.
    """

    def __init__(self, engine: Engine, store: AdapterStore, directory: Path) -> None:
        self._engine = engine
        self._store = store
        self._directory = directory
        self._paths: dict[int, Path] = {}
        self.version = 0
        """Version that new requests should use; 0: none was published yet."""

    def poll(self, in_use: Collection[int]) -> bool:
        """Take up the newest version if it is newer and a slot is free.

        Args:
            in_use: versions of the requests in flight.

        Returns:
            Whether ``version`` changed.

        Raises:
            UserError: the newest version cannot be served.
            CorruptPayload, StorageUnreachable: from the store.
        """
        latest = self._store.latest()
        if latest <= self.version:
            return False
        for version in self._engine.adapter_versions:
            if version != self.version and version not in in_use:
                self._engine.remove_adapter(version)
                # An engine may read the files again while the version is loaded, but not after.
                shutil.rmtree(self._paths.pop(version), ignore_errors=True)
        if len(self._engine.adapter_versions) == ADAPTER_SLOTS:
            return False  # long requests hold old versions: a later poll finds them finished
        path = fetch_unless_pruned(self._store, latest, self._directory)
        if path is None:
            return False
        self._engine.add_adapter(latest, path)
        self._paths[latest] = path
        self.version = latest
        return True


def fetch_unless_pruned(store: AdapterStore, version: int, directory: Path) -> Path | None:
    """The version's files below ``directory``; None if a newer one has meanwhile taken its place.

    Raises:
        UserError: the version is gone, and there is no newer one.
        CorruptPayload, StorageUnreachable: from the store.
    """
    try:
        return store.fetch(version, directory)
    except UserError:
        if store.latest() > version:
            return None
        raise
