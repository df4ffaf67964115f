"""Adapter versions of a run, wherever they lie, copied to where nobody changes them.

A version is in the store of a run that is live, in a checkpoint, or exported at the run's end. The same
version may lie in several places; its files are the same, for a version never changes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from api.errors import ApiError, unknown
from api.host import Adapter
from posteriori.commands.run_control import NotLive, RunControl
from posteriori.config import RunConfig
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from posteriori.run_messages import AdapterInfo

FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
ADAPTERS_KEPT = 64
"""Copies on disk; far more than an engine has slots, so none goes that is in use."""
NEWEST_FOR_SECONDS = 1.0
"""How long the newest version of a run is taken to be the newest."""


class Adapters:
    """Adapters of all runs, fetched on demand.

    Args:
        cache: directory that this process owns.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: OrderedDict[tuple[Path, int, int], Adapter] = OrderedDict()
        self._newest: dict[Path, tuple[float, int]] = {}

    def versions(self, run: RunControl, config: RunConfig) -> list[AdapterInfo]:
        """What can be had, ascending."""
        found: dict[int, AdapterInfo] = {}
        for version, path in _on_disk(run, config).items():
            exported = path == run.directory.adapter
            found[version] = AdapterInfo(
                version=version, source="exported" if exported else "checkpoint"
            )
        for version in self._live(run, config):
            found[version] = AdapterInfo(version=version, source="live")
        return [found[version] for version in sorted(found)]

    def fetch(self, run: RunControl, config: RunConfig, version: int | None) -> tuple[int, Adapter]:
        """A version (None: the newest) with its files.

        Raises:
            ApiError: the run has no such version.
        """
        path = run.directory.path
        # A run that was deleted and started anew counts its versions from the beginning.
        born = (path / "base-model").stat().st_mtime_ns
        seen_seconds, newest = self._newest.get(path, (-math.inf, 0))
        if version is None and time.monotonic() - seen_seconds < NEWEST_FOR_SECONDS:
            version = newest
        if version is not None and (path, born, version) in self._known:
            self._known.move_to_end((path, born, version))
            return version, self._known[path, born, version]
        live, stored = self._live(run, config), _on_disk(run, config)
        known = sorted({*live, *stored})
        if not known:
            fix = "Wait until the run has published one, or ask for version 0."
            raise ApiError(
                409, "no_adapter", f"Run {run.name!r} has no adapter yet.", fix, "version"
            )
        if version is None:
            version = known[-1]
            self._newest[path] = (time.monotonic(), version)
        try:
            if version in stored:
                directory = self._copy(run.name, version, stored[version])
            elif version in live:
                directory = self._from_store(run, config, version)
            else:
                raise unknown("version", version, known, "version")
        except OSError as cause:  # pruned between the listing and now
            raise unknown("version", version, known, "version") from cause
        adapter = Adapter(f"{born}/{directory.name}", directory)
        self._known[path, born, version] = adapter
        if len(self._known) > ADAPTERS_KEPT:
            _, oldest = self._known.popitem(last=False)
            shutil.rmtree(oldest.directory, ignore_errors=True)
        return version, adapter

    def _live(self, run: RunControl, config: RunConfig) -> tuple[int, ...]:
        from replay.redis_adapters import RedisAdapters

        try:
            with run.redis(config) as client:
                return RedisAdapters(client, config.run).versions()
        except NotLive:
            return ()

    def _from_store(self, run: RunControl, config: RunConfig, version: int) -> Path:
        from replay.redis_adapters import RedisAdapters

        with run.redis(config) as client:
            return RedisAdapters(client, config.run).fetch(version, self._cache)

    def _copy(self, run: str, version: int, source: Path) -> Path:
        contents = {name: (source / name).read_bytes() for name in FILES}
        digest = hashlib.blake2b(b"\0".join(contents.values()), digest_size=6).hexdigest()
        target = self._cache / f"{run}-v{version}-{digest}"
        if not target.exists():
            temporary = Path(mkdtemp(dir=self._cache))
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            temporary.rename(target)
        return target

    def close(self) -> None:
        """Delete the copies."""
        shutil.rmtree(self._cache, ignore_errors=True)


def _on_disk(run: RunControl, config: RunConfig) -> dict[int, Path]:
    """Versions in checkpoints, and the exported one."""
    found: dict[int, Path] = {}
    exported = run.directory.adapter
    newest = _bytes(exported / ADAPTER_WEIGHTS)
    exported_version = 0
    for path in sorted((run.directory.path / "checkpoints").glob("step-*")):
        step, head = int(path.name.removeprefix("step-")), _json(path / "state.json")
        if head and newest is not None and newest == _bytes(path / ADAPTER_WEIGHTS):
            exported_version = int(head["version"])
        # Between two publications a checkpoint's weights are no version.
        if head and step % config.learner.publish_every_steps == 0:
            found[int(head["version"])] = path
    if newest is not None:
        if not exported_version:
            summary = _json(run.directory.path / "report.json").get("summary", {})
            exported_version = int(summary.get("adapter_version", max(found, default=0) + 1))
        found[exported_version] = exported
    return found


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _json(file: Path) -> dict[str, Any]:
    content = _bytes(file)
    return json.loads(content) if content is not None else {}
