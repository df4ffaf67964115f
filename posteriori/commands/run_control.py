"""A run that another process drives: is it alive, what does it say, what is it asked to do?

The driver holds the run's lock; everything else goes through the run's registry in Redis. Any number of
processes may look and ask at the same time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from posteriori import config as run_file
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig
from posteriori.errors import StorageUnreachable, UserError
from posteriori.run_messages import (
    ActorInfo,
    ActorsInfo,
    BufferInfo,
    History,
    HistoryRow,
    RunEvent,
    RunInfo,
    RunState,
)

if TYPE_CHECKING:
    import redis

    from replay.registry import RunRegistry

LOG_NAME = "train.log"
LAUNCHED_NAME = "launched.yaml"
"""The run file of a run that the service launched."""
LOOK_SECONDS = 2.0
"""Nobody who only looks waits longer for a Redis that does not answer."""
CLOCK_SLACK_SECONDS = 1.0
RECENT_ROWS = 200
"""Evaluations come every so many steps; what is older is not the present."""
LEARNER = "learner"
ROLLOUT = "actor"
SHOWN_METRICS = ("loss", "gradient_norm", "ess", "staleness", "idle_ratio", "log_q_mismatch_max")
"""Of the newest step; curves have all."""


class NotLive(UserError):
    """The run has no registry that answers now."""


@dataclass(frozen=True)
class RunControl:
    """A run's directory, seen from outside its driver."""

    directory: RunDirectory

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.directory.path.name

    @property
    def log_path(self) -> Path:
        """What the driver printed, of a run that the service launched."""
        return self.directory.path / LOG_NAME

    def config(self) -> RunConfig:
        """The run file, as resolved or, before the driver has written that, as launched.

        Raises:
            UserError: there is none.
        """
        if self.directory.config_file.exists():
            return self.directory.load()
        return run_file.load(self.directory.path / LAUNCHED_NAME)

    def driver(self) -> int | None:
        """Process id of the driver on this machine; None: there is none."""
        lock = self.directory.path / "lock"
        try:
            pid, locked_unix_seconds = int(lock.read_text()), lock.stat().st_mtime
            born_unix_seconds = psutil.Process(pid).create_time()
        except (OSError, ValueError, psutil.Error):
            return None
        # A younger process only has the number of the driver that wrote it.
        return pid if born_unix_seconds < locked_unix_seconds + CLOCK_SLACK_SECONDS else None

    @contextmanager
    def redis(self, config: RunConfig) -> Iterator[redis.Redis]:
        """The run's Redis.

        Raises:
            NotLive: it does not run, or does not answer.
        """
        from replay.connection import connect
        from replay.server import running_address

        url = config.replay.redis_url
        try:
            if url == "embedded":
                url = running_address(self.directory.redis)
            client = connect(url, retries=0, socket_timeout_seconds=LOOK_SECONDS)
        except UserError as cause:
            raise NotLive(
                f"Run {self.name!r} is not live: {cause.problem}",
                "Resume it with `posteriori train RUN --resume`, or wait until it has started.",
            ) from cause
        with client:
            yield client

    @contextmanager
    def registry(self) -> Iterator[RunRegistry]:
        """The run's noticeboard; raises like :meth:`redis`."""
        config = self.config()
        with self.redis(config) as client:
            yield _registry(client, config)

    def actors(self) -> ActorsInfo:
        """Rollout actors wanted, and those that beat; raises :class:`NotLive`."""
        with self.registry() as registry:
            return _actors(registry)

    def scale(self, desired: int) -> ActorsInfo:
        """Ask for a number of rollout actors; raises :class:`NotLive`."""
        self._refuse_ended("scaled")
        with self.registry() as registry:
            registry.set_desired_actors(desired)
            registry.event("scaled", f"{desired} rollout actors wanted.", desired=desired)
            return _actors(registry)

    def stop(self, reason: str) -> None:
        """Ask the run to save and stop; raises :class:`NotLive`."""
        self._refuse_ended("stopped")
        with self.registry() as registry:
            registry.request_stop(reason)

    def _refuse_ended(self, what: str) -> None:
        # A Redis that outlives its runs takes wishes that nobody will read.
        embedded = self.config().replay.redis_url == "embedded"
        if not embedded and self.driver() is None and not self._held():
            raise NotLive(f"Run {self.name!r} has ended.", f"Only a running one can be {what}.")

    def _held(self) -> bool:
        """Does a driver on another machine hold the run?"""
        with self.registry() as registry:
            return registry.held()

    def events(self, after_id: str, limit: int) -> list[RunEvent]:
        """Events after an id, oldest first; raises :class:`NotLive`."""
        with self.registry() as registry:
            return [RunEvent(**vars(event)) for event in registry.events(after_id, limit)]

    def history(self, after_id: str, limit: int) -> History:
        """Metrics of learner steps after an id; of a run that is not live, from its curves on disk."""
        try:
            with self.registry() as registry:
                found = registry.history(after_id, limit)
        except NotLive:
            return _curves(self.directory.path / "tensorboard", after_id, limit)
        rows = [
            HistoryRow(
                id=row.id, unix_seconds=row.unix_seconds, step=row.step, metrics=finite(row.metrics)
            )
            for row in found
        ]
        return History(rows=rows, next_after=rows[-1].id if rows else after_id)

    def info(self, *, launching: bool = False) -> RunInfo:
        """The run at a glance.

        Args:
            launching: a driver has been started and may not have written anything yet.
        """
        config = self.config()
        report = self._report()
        summary: Mapping[str, Any] = report.get("summary", {}) if report else {}
        step, version = summary.get("steps"), int(summary.get("adapter_version", 0))
        desired, failure = None, None
        metrics = _assessed(report)
        state = self._state_without_registry(summary, launching)
        buffer = None
        with suppress(NotLive, StorageUnreachable), self.redis(config) as client:
            registry = _registry(client, config)
            buffer = _buffer(client, config)
            components = registry.components()
            learner = components.get(LEARNER)
            desired = registry.desired_actors()
            last = registry.recent(RECENT_ROWS)
            metrics |= {name: last[name] for name in SHOWN_METRICS if name in last}
            metrics |= {name: v for name, v in last.items() if name.startswith(("tv/", "log_z"))}
            if learner is not None:
                step = int(float(learner.fields.get("step") or 0))
                version = int(float(learner.fields.get("version") or 0))
            if state == "failed" and registry.held():
                state = "starting"  # its driver is on another machine
            if state in ("starting", "running"):
                state = "running" if learner and metrics else "starting"
                if registry.stop_requested() is not None:
                    state = "stopping"
            found = registry.failure()
            failure = None if found is None else f"{found.component}: {found.message}"
        if state == "failed" and failure is None:
            failure = self._last_words()
        return RunInfo(
            run=self.name,
            state=state,
            model=config.model,
            problems=[problem.name for problem in config.problems],
            steps=config.learner.steps,
            step=step,
            version=version,
            desired_actors=desired,
            failure=failure,
            metrics=finite(metrics),
            buffer=buffer,
        )

    def _state_without_registry(self, summary: Mapping[str, Any], launching: bool) -> RunState:
        if self.driver() is not None or launching:
            return "stopping" if summary or self._trained() else "starting"
        if not summary:
            return "failed"
        return "stopped" if summary.get("stopped_early") else "finished"

    def _report(self) -> dict[str, Any] | None:
        """The report of the newest attempt; None: it has not ended well yet."""
        file, lock = self.directory.path / "report.json", self.directory.path / "lock"
        try:
            if lock.exists() and file.stat().st_mtime < lock.stat().st_mtime:
                return None
            report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return report

    def _trained(self) -> bool:
        """Has this attempt exported its adapter? What is left is the assessment."""
        try:
            return (
                self.directory.adapter.stat().st_mtime
                > (self.directory.path / "lock").stat().st_mtime
            )
        except OSError:
            return False

    def _last_words(self) -> str | None:
        lines = self.log(20).strip().splitlines()
        errors = [line for line in lines if line.startswith("Error:")]
        return (errors or lines)[-1] if lines else None

    def log(self, lines: int) -> str:
        """The end of what the driver printed; empty where it was not launched by the service."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "".join(text.splitlines(keepends=True)[-lines:])


def _assessed(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics of an ended run, as its report has them: log Ẑ of every X assessed, TV and log Z where exact."""
    rows: list[dict[str, Any]] = report.get("assessments", []) if report else []
    found: dict[str, float] = {}
    for row in rows:
        alone = sum(other["problem"] == row["problem"] for other in rows) == 1
        name = row["problem"] if alone else f"{row['problem']}/{row['prompt']}"
        found[f"log_z/{name}"] = row["policy"]["log_z"]
        if row["exact"]:
            found[f"tv/{name}"] = row["exact"]["policy"]["total_variation"]
            found[f"log_z_exact/{name}"] = row["exact"]["log_z"]
    return {name: value for name, value in found.items() if value is not None}


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _registry(client: redis.Redis, config: RunConfig) -> RunRegistry:
    from replay.registry import RunRegistry

    return RunRegistry(client, config.run)


def _buffer(client: redis.Redis, config: RunConfig) -> BufferInfo:
    from replay.redis_buffer import RedisBuffer

    stats = RedisBuffer(client, config.run, config.replay).stats()
    return BufferInfo(**{name: getattr(stats, name) for name in BufferInfo.model_fields})


def _actors(registry: RunRegistry) -> ActorsInfo:
    return ActorsInfo(
        desired=registry.desired_actors(),
        actors=[
            ActorInfo(name=name, age_seconds=component.age_seconds, fields=component.fields)
            for name, component in registry.components().items()
            if name.startswith(ROLLOUT)
        ],
    )


def _curves(directory: Path, after_id: str, limit: int) -> History:
    """Rows of the TensorBoard logs; a row's id is its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not directory.is_dir():
        return History(rows=[], next_after=after_id)
    step_after = int(after_id.partition("-")[0]) if after_id != "0-0" else -1
    curves = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    curves.Reload()
    values: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for name in curves.Tags()["scalars"]:
        for point in curves.Scalars(name):
            values.setdefault(point.step, {})[name] = point.value
            times[point.step] = point.wall_time
    rows = [
        HistoryRow(
            id=f"{step}-0", unix_seconds=times[step], step=step, metrics=finite(values[step])
        )
        for step in sorted(values)
        if step > step_after
    ][:limit]
    return History(rows=rows, next_after=rows[-1].id if rows else after_id)
