"""The pool of rollout actors on Ray: does what :class:`actors.pool.ActorPool` plans."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import ray

from actors.autoscale_hook import AutoscaleHook
from actors.pool import ActorPool
from actors.ray_actor import RolloutActor
from posteriori.config import RunConfig
from posteriori.errors import (
    CorruptPayload,
    ProducerQuarantined,
    StorageFull,
    StorageUnreachable,
    UserError,
    WaitTimeout,
)
from posteriori.freed_memory import computing
from posteriori.placement import actor_room, gpu_actors
from replay.buffers import open_buffer
from replay.connection import connect
from replay.registry import Component, RunRegistry

STRATEGIES = {"spread": "SPREAD", "pack": "DEFAULT"}
"""Ray's words: DEFAULT fills nodes that are in use before it takes another one."""

HUNG_SECONDS = 120.0
"""A sampling actor beats every few seconds; one this silent is stuck in a kernel or a lock."""

LONGEST_SILENT_GAP_SECONDS = 5.0
"""No more than this counts as silence between two looks: where the pool itself could not look, because
Redis was away, the actors could not beat."""

STARTUP_SECONDS = 900.0
"""From submission to the first heartbeat of a sampling actor: a cluster may have to add a node."""

STOP_GRACE_SECONDS = 20.0
"""To finish a turn and to store what is finished; longer than ``rollout.DRAIN_SECONDS``."""

_PASSING = (WaitTimeout, StorageFull, StorageUnreachable, CorruptPayload, ProducerQuarantined)
"""User errors that another actor may be spared."""


@dataclass
class _Handle:
    actor: Any
    end: Any
    """Reference of ``run()``: resolves or raises when the actor ends."""
    started_seconds: float
    on_gpu: bool
    stopping_seconds: float | None = None
    beat: Component | None = None
    """The newest heartbeat seen."""
    silent_seconds: float = 0.0
    """For how long none came, by the pool's own clock."""
    worked: bool = False
    """Whether it has stored trajectories."""


class RayPool:
    """Keeps the desired number of rollout actors alive.

    Nothing happens by itself: call :meth:`reconcile` about once a second. The number is the one
    last given to :meth:`scale` or to the registry; 0 once the run is asked to stop. Events go to the registry
    as ``actor_started``, ``actor_stopped`` and ``actor_died``.

    Args:
        config: the run.
        redis_url: of the run's Redis, reachable from every node.
        registry: of the run.
        desired: actors wanted; None: ``config.sampling.actors``.
    """

    def __init__(
        self,
        config: RunConfig,
        redis_url: str,
        registry: RunRegistry,
        *,
        desired: int | None = None,
    ) -> None:
        self._config = config
        self._redis_url = redis_url
        self._registry = registry
        # Ids of an earlier attempt at the run are in the buffer: never use them again.
        attempt = secrets.token_hex(2)
        self.state = ActorPool(
            config.sampling.actors if desired is None else desired,
            lambda number: f"actor-{attempt}-{number}",
        )
        self._handles: dict[str, _Handle] = {}
        self._looked_seconds = time.monotonic()
        self._autoscale = (
            None
            if config.autoscale is None
            else AutoscaleHook(
                config,
                registry,
                open_buffer(
                    connect(redis_url, patience_seconds=config.replay.deadline_seconds), config
                ),
            )
        )

    def scale(self, desired: int) -> None:
        """Want another number of actors; takes effect at the next :meth:`reconcile`."""
        self._registry.set_desired_actors(desired)
        self.state.scale(desired)

    def reconcile(self) -> None:
        """Notice ends, kill what hangs, start and stop what the plan says. Does not wait.

        Raises:
            StorageUnreachable: the registry does not answer.
        """
        now = time.monotonic()
        ending = self._registry.stop_requested() is not None
        if self._autoscale is not None and not ending:
            self._autoscale.look(*self._sampling_and_gpus())
        desired = 0 if ending else self._registry.desired_actors()
        if desired is not None and desired != self.state.desired:
            self.state.scale(desired)
        self._read_beats(time.monotonic())
        self._notice_ends(now)
        self._kill_hung(now)
        self._follow_plan(now, drain=not ending)

    def _sampling_and_gpus(self) -> tuple[int, float]:
        """Actors that sample and are to go on, and GPUs that all of them hold."""
        sampling = sum(
            handle.stopping_seconds is None
            and handle.beat is not None
            and handle.beat.fields.get("state") == "sampling"
            for handle in self._handles.values()
        )
        holding = sum(handle.on_gpu for handle in self._handles.values())
        return sampling, holding * self._config.sampling.gpus_per_actor

    def close(self) -> None:
        """Stop all actors; those that do not end in time are killed."""
        self.state.scale(0)
        self._follow_plan(time.monotonic(), drain=False)
        ends = [handle.end for handle in self._handles.values()]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_GRACE_SECONDS)
        self._notice_ends(time.monotonic())
        for handle in self._handles.values():
            ray.kill(handle.actor)
        self._handles.clear()

    def _follow_plan(self, now: float, drain: bool) -> None:
        plan = self.state.plan(now)
        for actor_id in plan.start:
            self._start(actor_id, now)
        for actor_id in plan.stop:
            self._handles[actor_id].stopping_seconds = now
            self._handles[actor_id].actor.stop.remote(drain)

    def _start(self, actor_id: str, now: float) -> None:
        config = self._config
        alive = len(self._handles) + 1
        holding = sum(handle.on_gpu for handle in self._handles.values())
        on_gpu = holding < gpu_actors(config, alive)
        if not on_gpu:
            sampling = config.sampling.model_copy(update={"gpus_per_actor": 0.0})
            placement = config.placement.model_copy(update={"gpu_actors": None})
            config = config.model_copy(update={"sampling": sampling, "placement": placement})
        room = actor_room(config, on_gpu)
        actor = RolloutActor.options(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            scheduling_strategy=STRATEGIES[config.placement.actors],
            runtime_env=computing(config.sampling.threads),
        ).remote(config.model_dump(mode="json"), self._redis_url, actor_id)
        self._handles[actor_id] = _Handle(actor, actor.run.remote(), now, on_gpu)
        self._registry.event("actor_started", f"Rollout actor {actor_id} starts.", actor=actor_id)

    def _notice_ends(self, now: float) -> None:
        ends = {handle.end: actor_id for actor_id, handle in self._handles.items()}
        if not ends:
            return
        ended, _running = ray.wait(list(ends), num_returns=len(ends), timeout=0)
        for end in ended:
            actor_id = ends[end]
            handle = self._handles.pop(actor_id)
            try:
                ray.get(end)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                hopeless = isinstance(cause, UserError) and not isinstance(cause, _PASSING)
                reason = _first_line(cause)
                self.state.died(actor_id, now, reason, worked=handle.worked, hopeless=hopeless)
                self._registry.event(
                    "actor_died",
                    f"Rollout actor {actor_id} died: {reason}",
                    actor=actor_id,
                    restarts=self.state.restarts,
                )
            else:
                self.state.ended(actor_id)
                self._registry.event(
                    "actor_stopped", f"Rollout actor {actor_id} stopped.", actor=actor_id
                )
            # An actor outlives its run() as an idle process that holds the engine's memory.
            ray.kill(handle.actor)
            self._registry.forget(actor_id)

    def _read_beats(self, now: float) -> None:
        components = self._registry.components() if self._handles else {}
        gap = min(now - self._looked_seconds, LONGEST_SILENT_GAP_SECONDS)
        self._looked_seconds = now
        for actor_id, handle in self._handles.items():
            beat = components.get(actor_id)
            # Ages grow between two looks, fields of a living actor (its uptime) change with each beat.
            if beat is None or (handle.beat is not None and beat.fields == handle.beat.fields):
                handle.silent_seconds += gap
                continue
            handle.beat, handle.silent_seconds = beat, 0.0
            stored = (beat.fields.get(kind) or 0 for kind in ("inserted", "merged", "dropped"))
            handle.worked = any(stored)

    def _kill_hung(self, now: float) -> None:
        """Kill silent actors; the next reconcile notices their end and replaces them."""
        for handle in self._handles.values():
            if handle.stopping_seconds is not None:
                hung = now - handle.stopping_seconds > STOP_GRACE_SECONDS
            elif handle.beat is not None and handle.beat.fields.get("state") == "sampling":
                hung = handle.silent_seconds > HUNG_SECONDS
            else:
                hung = now - handle.started_seconds > STARTUP_SECONDS
            if hung:
                ray.kill(handle.actor)


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
