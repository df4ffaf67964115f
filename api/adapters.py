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
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from api.draws import Adapter
from api.errors import ApiError, unknown
from posteriori.commands.run_control import NotLive, RunControl
from posteriori.config import RunConfig
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from posteriori.run_messages import AdapterInfo

FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
ADAPTERS_KEPT = 64
"""Copies on disk; far more than an engine has slots, so none goes that is in use."""
NEWEST_FOR_SECONDS = 1.0
"""How long the newest version of a run is taken to be the newest."""

Place = tuple[Path, int]
"""A run's directory, and when it was made, in nanoseconds."""


class Adapters:
    """Adapters of all runs, fetched on demand.

    Args:
        cache: directory that this process owns.
        spread: may a run's newest adapter be drawn by? If not, it is loading and the one before is.
    """

    def __init__(self, cache: Path, spread: Callable[[Path, Adapter], bool]) -> None:
        self._cache = cache
        self._spread = spread
        self._known: OrderedDict[tuple[Path, int, int], Adapter] = OrderedDict()
        self._newest: dict[Place, tuple[float, int]] = {}
        self._serving: dict[Place, tuple[int, Adapter]] = {}

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
        """A version (None: the newest that can be drawn by) with its files.

        Raises:
            ApiError: the run has no such version.
        """
        # A run that was deleted and started anew counts its versions from the beginning.
        place = run.directory.path, (run.directory.path / "base-model").stat().st_mtime_ns
        if version is not None:
            return version, self._fetch(run, config, place, version)
        seen_seconds, newest = self._newest.get(place, (-math.inf, 0))
        if time.monotonic() - seen_seconds >= NEWEST_FOR_SECONDS:
            newest = max([*self._live(run, config), *_on_disk(run, config)], default=0)
            if not newest:
                fix = "Wait until the run has published one, or ask for version 0."
                raise ApiError(
                    409, "no_adapter", f"Run {run.name!r} has no adapter yet.", fix, "version"
                )
            self._newest[place] = (time.monotonic(), newest)
        adapter = self._fetch(run, config, place, newest)
        before = self._serving.get(place)
        if before is not None and not self._spread(run.directory.path, adapter):
            return before
        self._serving[place] = newest, adapter
        return self._serving[place]

    def _fetch(self, run: RunControl, config: RunConfig, place: Place, version: int) -> Adapter:
        key = (*place, version)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        live, stored = self._live(run, config), _on_disk(run, config)
        try:
            if version in stored:
                directory = self._copy(run.name, version, stored[version])
            elif version in live:
                directory = self._from_store(run, config, version)
            else:
                raise unknown("version", version, sorted({*live, *stored}), "version")
        except OSError as cause:  # pruned between the listing and now
            raise unknown("version", version, sorted({*live, *stored}), "version") from cause
        self._known[key] = Adapter(f"{place[1]}/{directory.name}", directory)
        if len(self._known) > ADAPTERS_KEPT:
            _, oldest = self._known.popitem(last=False)
            shutil.rmtree(oldest.directory, ignore_errors=True)
        return self._known[key]

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
