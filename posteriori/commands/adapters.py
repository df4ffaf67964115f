"""Adapter versions copied from the store into a run's directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from posteriori.seams import AdapterStore


def export(adapters: AdapterStore, version: int, target: Path) -> None:
    """Write a version as the PEFT directory ``target``, replacing an older one as a whole.

    Raises:
        UserError: the version is not in the store.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch:
        fetched = adapters.fetch(version, Path(scratch))
        old = Path(scratch) / "old"
        if target.exists():
            target.rename(old)
        shutil.move(fetched, target)
