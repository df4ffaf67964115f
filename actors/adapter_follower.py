"""Keeps an engine at the newest published adapter while it samples."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from posteriori.errors import CorruptPayload, StorageFull, UserError
from posteriori.seams import AdapterStore, Engine

log = logging.getLogger(__name__)

LONGEST_LAG_VERSIONS = 8
"""An actor that cannot take up newer versions samples on with its old one no further behind than this."""

ADAPTER_SLOTS = 3
"""The version in force, its predecessor under requests in flight, and the one being taken up."""


class AdapterFollower:
    """Loads newer versions between engine steps; requests in flight keep the one they began with.

    Args:
        engine: with ``slots`` adapter slots.
        store: where versions are published.
        directory: the follower's own; versions are written below it and deleted again.
        on_event: called with ``adapter_refused`` and a sentence when the newest version is damaged or
            the disk has no room for it, and the one before it stays in force.
        slots: versions the engine holds at once.
    """

    def __init__(
        self,
        engine: Engine,
        store: AdapterStore,
        directory: Path,
        on_event: Callable[[str, str], object] | None = None,
        slots: int = ADAPTER_SLOTS,
    ) -> None:
        self._on_event = on_event or (lambda kind, message: None)
        self._refused = 0
        self._slots = slots
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
            StorageUnreachable: from the store.
            CorruptPayload, StorageFull: the newest version cannot be had, and the one in force is more
                than ``LONGEST_LAG_VERSIONS`` behind it.
        """
        latest = self._store.latest()
        if latest <= self.version:
            return False
        for version in self._engine.adapter_versions:
            if version != self.version and version not in in_use:
                self._engine.remove_adapter(version)
                # An engine may read the files again while the version is loaded, but not after.
                shutil.rmtree(self._paths.pop(version), ignore_errors=True)
        if len(self._engine.adapter_versions) == self._slots:
            return False  # long requests hold old versions: a later poll finds them finished
        try:
            path = fetch_unless_pruned(self._store, latest, self._directory)
        except (CorruptPayload, StorageFull) as cause:
            self._refuse(latest, cause)
            return False
        if path is None:
            return False
        self._engine.add_adapter(latest, path)
        self._paths[latest] = path
        self.version = latest
        return True

    def _refuse(self, latest: int, cause: CorruptPayload | StorageFull) -> None:
        if latest - self.version > LONGEST_LAG_VERSIONS:
            raise cause
        if self._refused != latest:  # once a version, not at every poll
            self._refused = latest
            what = (
                f"ADAPTER VERSION {latest} CANNOT BE USED ({cause.problem}): version {self.version} "
                "stays in force."
            )
            log.error("%s", what)
            self._on_event("adapter_refused", what)


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
