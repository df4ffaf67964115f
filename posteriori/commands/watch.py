"""Watching a run: actors kept alive, metrics shown, the first failure raised."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posteriori.commands.adapters import export
from posteriori.commands.interrupts import Interrupts
from posteriori.commands.progress import ProgressView
from posteriori.commands.run_directory import RunDirectory
from posteriori.errors import UserError
from posteriori.seams import AdapterStore, Buffer

if TYPE_CHECKING:
    from actors.ray_pool import RayPool
    from replay.registry import RunRegistry

POLL_SECONDS = 0.5
STATS_SECONDS = 2.0
STOP_DEADLINE_SECONDS = 120.0
"""The learner finishes its step and writes a checkpoint before it stops."""
UNDER_TRAINED_TV = 0.2
"""An adapter this far from the posterior serves to check that importance weights correct it."""

Fields = Mapping[str, Any]


class Watch:
    """Follows the learner of one run to its end.

    Args:
        registry, adapters, buffer, pool: of the run.
        directory: where early adapters are kept.
        view: shows progress.
    """

    def __init__(
        self,
        registry: RunRegistry,
        adapters: AdapterStore,
        buffer: Buffer,
        pool: RayPool,
        directory: RunDirectory,
        view: ProgressView,
    ) -> None:
        self.history: list[dict[str, float]] = []
        self.actors: dict[str, Fields] = {}
        self._registry = registry
        self._adapters = adapters
        self._buffer = buffer
        self._pool = pool
        self._directory = directory
        self._view = view
        self._last_row = "0-0"
        # Rows of an earlier attempt tell of adapters that are not the latest any more.
        self._rows_before = len(registry.history())
        self._next_stats_seconds = 0.0
        self._stop_asked_seconds: float | None = None

    def follow(self, learner: Any, interrupts: Interrupts) -> None:
        """Return when the learner has ended.

        Args:
            learner: Ray handle with ``run`` and ``stop``.
            interrupts: wishes to stop.

        Raises:
            UserError: the first cause, if a component failed.
        """
        import ray

        end = learner.run.remote()
        finished: list[Any] = []
        while not finished:
            finished, _ = ray.wait([end], timeout=POLL_SECONDS)
            self._pool.reconcile()
            self._read_metrics()
            self._read_components()
            if not finished:
                self._raise_failure()
                self._pass_on_stop(learner, interrupts)
        try:
            ray.get(end)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except ray.exceptions.RayError as error:  # killed, or out of memory
            raise UserError(
                f"The learner's process died: {_cause(error)}",
                f"Its last checkpoint is whole; continue with `posteriori train {self._directory.path} --resume`.",
            ) from error
        self._read_metrics()

    def _read_metrics(self) -> None:
        for row in self._registry.history(self._last_row):
            self._last_row = row.id
            metrics = {"step": float(row.step), **row.metrics}
            self.history.append(metrics)
            self._view.metrics(metrics)
            if len(self.history) > self._rows_before:
                self._keep_early_adapters(metrics)

    def _keep_early_adapters(self, metrics: Mapping[str, float]) -> None:
        """Keep, for each X, the first trained adapter seen far from the posterior.

        The last one would often have the right marginals by then, and be wrong elsewhere alone.
        """
        if metrics["step"] == 0:
            return  # that one is the base LM still
        version = int(metrics.get("version", 0))
        for key, value in metrics.items():
            if not key.startswith("tv/") or value < UNDER_TRAINED_TV:
                continue
            kept = self._directory.early_adapter(key.removeprefix("tv/"))
            if not kept.exists() and version in self._adapters.versions():
                export(self._adapters, version, kept)

    def _read_components(self) -> None:
        now = time.monotonic()
        if now < self._next_stats_seconds:
            return
        self._next_stats_seconds = now + STATS_SECONDS
        components = {name: row.fields for name, row in self._registry.components().items()}
        alive = {name: fields for name, fields in components.items() if name.startswith("actor")}
        self.actors.update(alive)
        stats = self._buffer.stats()
        self._view.buffer(stats.payload_bytes / stats.capacity_bytes, stats.trajectories)
        self._view.actors(alive, self._pool.state.restarts)
        if not self.history:
            self._view.waiting(_waiting_for(alive))

    def _raise_failure(self) -> None:
        failure = self._registry.failure()
        quarantine = self._pool.state.quarantine
        if failure is not None:
            what = f"{failure.component} stopped the run: {failure.message}"
        elif quarantine is not None and not self._pool.state.alive:
            what = f"No rollout actor can start: {quarantine}"
        else:
            return
        raise UserError(
            what,
            f"Mend the cause, then continue with `posteriori train {self._directory.path} --resume`.",
        )

    def _pass_on_stop(self, learner: Any, interrupts: Interrupts) -> None:
        if self._registry.stop_requested() is not None:
            interrupts.asked = True
        if not interrupts.asked:
            return
        now = time.monotonic()
        if self._stop_asked_seconds is None:
            self._stop_asked_seconds = now
            self._registry.request_stop("interrupted")
            learner.stop.remote()
        elif now - self._stop_asked_seconds > STOP_DEADLINE_SECONDS:
            raise UserError(
                f"The learner did not stop within {STOP_DEADLINE_SECONDS:g} s.",
                f"Its last checkpoint is whole; continue with `posteriori train {self._directory.path} --resume`.",
            )


def _waiting_for(actors: Mapping[str, Fields]) -> str:
    if all(fields.get("state") == "starting" for fields in actors.values()):
        return "waiting for the first rollout actor's engine"
    return "waiting for the first trajectories"


def _cause(error: Exception) -> str:
    """What Ray says of a dead actor: where its constructor failed, the exception is the last line."""
    lines = str(error).strip().splitlines()
    failed = "creation task" in lines[0]
    return lines[-1] if failed else lines[0]
