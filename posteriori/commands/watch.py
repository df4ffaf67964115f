"""Watching a run: actors kept alive, metrics shown, the first failure raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from posteriori.commands.adapters import export
from posteriori.commands.history import History
from posteriori.commands.interrupts import Interrupts
from posteriori.commands.progress import ProgressView
from posteriori.commands.run_directory import RunDirectory
from posteriori.errors import UserError
from posteriori.seams import AdapterStore, Buffer, BufferStats

if TYPE_CHECKING:
    from actors.ray_pool import RayPool
    from replay.registry import RunRegistry

BEGINNING = "0-0"
"""Before the first entry of the registry's streams."""
POLL_SECONDS = 0.5
STATS_SECONDS = 2.0
STOP_DEADLINE_SECONDS = 120.0
"""The learner finishes its step and writes a checkpoint before it stops."""
LEARNER_BACKOFF_SECONDS = (1.0, 4.0, 15.0)
"""Pauses before a learner that died is started again, by deaths in a row without a step; one more ends
the run, since it would most likely die of the same again."""
LOUD = frozenset(
    {
        "adapter_refused",
        "checkpoint_damaged",
        "checkpoint_failed",
        "publish_failed",
        "quarantined",
        "rejected",
        "storage_lost",
    }
)
"""Events that the user is shown when they happen."""
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
        self.history = History()
        self.actors: dict[str, Fields] = {}
        self._registry = registry
        self._adapters = adapters
        self._buffer = buffer
        self._pool = pool
        self._directory = directory
        self._view = view
        self._last_row = BEGINNING
        # Rows of an earlier attempt tell of adapters that are not the latest any more.
        self._rows_before = len(registry.history())
        self._next_stats_seconds = 0.0
        self._stop_asked_seconds: float | None = None
        self._last_event = _newest(registry)
        self._received = 0
        self.learner_deaths = 0
        """How often the learner was started again."""

    def follow(self, start: Callable[[bool], Any], resuming: bool, interrupts: Interrupts) -> None:
        """Start the learner, again when its process dies, and return when it has ended.

        Args:
            start: starts it, from the newest checkpoint if told so; returns a Ray handle with ``run``
                and ``stop``.
            resuming: whether the first one goes on from a checkpoint.
            interrupts: wishes to stop.

        Raises:
            UserError: the first cause, if a component failed.
        """
        deaths_in_a_row = 0
        while True:
            last_row = self._last_row
            died = self._follow_one(start(resuming), interrupts)
            if died is None:
                return
            deaths_in_a_row = 1 if self._last_row != last_row else deaths_in_a_row + 1
            if deaths_in_a_row > len(LEARNER_BACKOFF_SECONDS) or interrupts.asked:
                raise UserError(
                    f"The learner's process died: {_cause(died)}",
                    f"Its last checkpoint is whole; continue with `posteriori train "
                    f"{self._directory.path} --resume`.",
                ) from died
            self.learner_deaths += 1
            what = (
                f"The learner's process died ({_cause(died)}): another goes on from its checkpoint."
            )
            self._view.say(what)
            self._registry.event("learner_died", what)
            self._wait(LEARNER_BACKOFF_SECONDS[deaths_in_a_row - 1])
            resuming = True

    def _follow_one(self, learner: Any, interrupts: Interrupts) -> Exception | None:
        """Follow one process of the learner; its death, None if it ended as it should."""
        import ray

        end = learner.run.remote()
        finished: list[Any] = []
        while not finished:
            finished, _ = ray.wait([end], timeout=POLL_SECONDS)
            self._look()
            if not finished:
                self._raise_failure()
                self._pass_on_stop(learner, interrupts)
        try:
            ray.get(end)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except ray.exceptions.RayError as error:  # killed, or out of memory
            if "creation task" in str(error):  # its constructor refused: it would again
                raise UserError(f"The learner cannot start: {_cause(error)}", "") from error
            died: Exception = error
            return died
        self._read_metrics()
        return None

    def _wait(self, seconds: float) -> None:
        """Go on watching all others meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            self._look()

    def _look(self) -> None:
        self._pool.reconcile()
        self._read_metrics()
        self._read_components()

    def _read_metrics(self) -> None:
        for row in self._registry.history(self._last_row):
            self._last_row = row.id
            metrics = {"step": float(row.step), **row.metrics}
            self.history.add(metrics)
            self._view.metrics(metrics)
            if self.history.count > self._rows_before:
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
        for event in self._registry.events(self._last_event):
            self._last_event = event.id
            if event.kind in LOUD:
                self._view.say(event.message)
        stats = self._buffer.stats()
        self._notice_loss(stats)
        self._view.buffer(stats.payload_bytes / stats.capacity_bytes, stats.trajectories)
        self._view.actors(alive, self._pool.state.restarts)
        if not self.history.count:
            self._view.waiting(_waiting_for(alive))

    def _notice_loss(self, stats: BufferStats) -> None:
        """Counters only grow, unless Redis came back without the newest writes: its host died."""
        received = stats.inserted + stats.merged + stats.dropped
        if received < self._received:
            self._registry.event(
                "storage_lost",
                f"REDIS CAME BACK WITHOUT {self._received - received} TRAJECTORIES that it had "
                "acknowledged. `replay.fsync: always` loses none.",
                trajectories=self._received - received,
            )
        self._received = received

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


def _newest(registry: RunRegistry) -> str:
    """Id of the newest event of earlier attempts."""
    last = BEGINNING
    while events := registry.events(last):
        last = events[-1].id
    return last


def _waiting_for(actors: Mapping[str, Fields]) -> str:
    if all(fields.get("state") == "starting" for fields in actors.values()):
        return "waiting for the first rollout actor's engine"
    return "waiting for the first trajectories"


def _cause(error: Exception) -> str:
    """What Ray says of a dead actor: where its constructor failed, the exception is the last line."""
    lines = str(error).strip().splitlines()
    failed = "creation task" in lines[0]
    return lines[-1] if failed else lines[0]
