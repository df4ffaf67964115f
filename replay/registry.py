"""The noticeboard of a run: heartbeats, events, metrics, wishes and the first failure.

Ages and times are by the Redis server's clock, so no two hosts' clocks need to agree.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgpack
import redis

from posteriori.errors import StorageFull, UserError
from replay.connection import storage_errors
from replay.scripts import load_script

log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
METRICS_KEPT = 10_000
"""Rows of history; about 900 bytes each and one a step. Both streams are cut approximately; what was cut is
in TensorBoard's files still."""
SETTLED = " done"
"""Held by a task that is done; no component's name begins with a space."""
BEGINNING = "0-0"
"""Before the first entry of a stream."""

Plain = str | int | float | bool | None
"""What a field may hold."""


@dataclass(frozen=True)
class Component:
    """The last heartbeat of a part of the run.

    Attributes:
        age_seconds: since that heartbeat, by the server's clock.
        fields: its state and counters, as it gave them.
    """

    age_seconds: float
    fields: dict[str, Plain]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: position in the stream; pass the last one seen to :meth:`RunRegistry.events`.
        unix_seconds: by the server's clock.
        kind: one word, such as ``published`` or ``actor_died``.
        message: a sentence for people.
        fields: the same for programs.
    """

    id: str
    unix_seconds: float
    kind: str
    message: str
    fields: dict[str, Plain]


@dataclass(frozen=True)
class MetricsRow:
    """The metrics of one learner step. A resumed run repeats the steps after its checkpoint."""

    id: str
    unix_seconds: float
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """The first cause of a run's end."""

    component: str
    message: str


class RunRegistry:
    """What the parts of one run tell each other. Every call is atomic and one round trip.

    All methods raise StorageUnreachable when the server does not answer. When it has no room, heartbeats,
    events and metrics are dropped with a warning, since no run should end for them; other writes raise
    StorageFull.

    Args:
        client: from :func:`replay.connection.connect`.
        run: name of the run; all keys lie under ``posteriori:{run}:registry``.
    """

    def __init__(self, client: redis.Redis, run: str) -> None:
        self._client = client
        self._namespace = f"posteriori:{{{run}}}:registry"
        self._beat = load_script(client, "beat")
        self._components = load_script(client, "components")
        self._hold = load_script(client, "hold")

    def begin(self) -> None:
        """Forget the failure, the stop request and the components of an earlier attempt.

        Events and history stay, so that a resumed run shows its past.
        """
        with storage_errors(self._client):
            self._client.delete(
                *(self._key(name) for name in ("failure", "stop", "beats", "components"))
            )

    # ----------------------------------------------------------------------------------- lease

    def hold(self, owner: str, lease_seconds: float) -> Literal["yours", "held", "left"]:
        """Be the run's only driver for a while; call it again before the lease ends, by the server's clock.

        Args:
            owner: of the run's directory: the same at every resume, another for a run of the same name.
            lease_seconds: after this long without a call the run counts as dead.

        Returns:
            ``yours``, ``held`` by a living owner, or ``left`` by a dead one.
        """
        arguments: list[str | int] = [owner, round(lease_seconds * 1000)]
        with storage_errors(self._client):
            found = cast(bytes, self._hold(keys=[self._namespace], args=arguments))
        return cast(Literal["yours", "held", "left"], found.decode())

    def release(self) -> None:
        """End the lease: the run has ended."""
        with storage_errors(self._client):
            self._client.delete(self._key("lease"))

    def held(self) -> bool:
        """Does a driver hold the run now, on whatever machine?"""
        with storage_errors(self._client):
            return bool(self._client.exists(self._key("lease")))

    # ------------------------------------------------------------------------------ components

    def beat(self, component: str, fields: Mapping[str, Plain]) -> None:
        """Say that a component is alive and how it does; replaces its earlier fields."""
        with _dropped_without_room(f"A heartbeat of {component}"), storage_errors(self._client):
            self._beat(keys=[self._namespace], args=[component, msgpack.packb(dict(fields))])

    def components(self) -> dict[str, Component]:
        """Every component that ever beat and was not forgotten, by name."""
        with storage_errors(self._client):
            seconds, microseconds, *flat = self._components(keys=[self._namespace])
        now = int(seconds) + int(microseconds) / 1e6
        beats, states = (dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in flat)
        return {
            name.decode(): Component(max(0.0, now - float(beats[name])), msgpack.unpackb(state))
            for name, state in sorted(states.items())
        }

    def forget(self, component: str) -> None:
        """Remove a component that left on purpose."""
        with storage_errors(self._client):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hdel(self._key("beats"), component)
            pipeline.hdel(self._key("components"), component)
            pipeline.execute()

    # ---------------------------------------------------------------------------------- wishes

    def set_desired_actors(self, count: int) -> None:
        """Ask the pool for this many rollout actors.

        Raises:
            UserError: the count is negative.
        """
        if count < 0:
            raise UserError(f"{count} rollout actors.", "Ask for 0 or more.")
        with storage_errors(self._client):
            self._client.set(self._key("desired_actors"), str(count))

    def desired_actors(self) -> int | None:
        """The number asked for, None if nobody has asked."""
        with storage_errors(self._client):
            count = self._client.get(self._key("desired_actors"))
        return None if count is None else int(count)

    def request_stop(self, reason: str) -> None:
        """Ask the run to save and stop; the first reason stays."""
        with storage_errors(self._client):
            self._client.set(self._key("stop"), reason, nx=True)

    def stop_requested(self) -> str | None:
        """Why the run is to stop, None if it is not."""
        with storage_errors(self._client):
            reason = cast(bytes | None, self._client.get(self._key("stop")))
        return None if reason is None else reason.decode()

    def fail(self, component: str, message: str) -> None:
        """Report what ends the run; the first report stays, later ones are consequences."""
        with storage_errors(self._client):
            self._client.set(self._key("failure"), msgpack.packb([component, message]), nx=True)

    def failure(self) -> Failure | None:
        """The first report of :meth:`fail`, None if there is none."""
        with storage_errors(self._client):
            packed = self._client.get(self._key("failure"))
        return None if packed is None else Failure(*msgpack.unpackb(packed))

    def add(self, total: str, amount: float) -> float:
        """Add to a sum over the run and its resumptions, such as GPU-seconds; return the new sum."""
        with storage_errors(self._client):
            return float(self._client.hincrbyfloat(self._key("totals"), total, amount))

    # --------------------------------------------------------------------------- tasks done once

    def claim(
        self, task: str, component: str, lease_seconds: float
    ) -> Literal["yours", "taken", "done"]:
        """Ask for a task that is done once a run, over all its attempts.

        Args:
            task: one word.
            component: who asks; it may ask again for what it holds.
            lease_seconds: after this long without :meth:`settle` the task is anybody's again.

        Returns:
            ``yours``, ``taken`` by another for now, or ``done``.
        """
        key, lease_milliseconds = self._key(f"task:{task}"), round(lease_seconds * 1000)
        with storage_errors(self._client):
            if self._client.set(key, component, nx=True, px=lease_milliseconds):
                return "yours"
            holder = cast(bytes | None, self._client.get(key))
        if holder == SETTLED.encode():
            return "done"
        return "yours" if holder == component.encode() else "taken"

    def settle(self, task: str) -> None:
        """The task is done: no claim of it is granted any more."""
        with storage_errors(self._client):
            self._client.set(self._key(f"task:{task}"), SETTLED)

    # --------------------------------------------------------------------------------- streams

    def event(self, kind: str, message: str, **fields: Plain) -> str | None:
        """Append an event; return its id, None if it was dropped."""
        entry = {"kind": kind, "message": message, "fields": msgpack.packb(fields)}
        return self._append("events", entry, EVENTS_KEPT, f"The event {message!r}")

    def events(self, after_id: str = BEGINNING, limit: int = 1000) -> list[Event]:
        """Up to ``limit`` events after an id, oldest first."""
        return [
            Event(
                id_,
                unix_seconds,
                entry[b"kind"].decode(),
                entry[b"message"].decode(),
                msgpack.unpackb(entry[b"fields"]),
            )
            for id_, unix_seconds, entry in self._read("events", after_id, limit)
        ]

    def record(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Append the metrics of a learner step; return the row's id, None if it was dropped."""
        values = {name: float(value) for name, value in metrics.items()}
        entry = {"step": str(step), "metrics": msgpack.packb(values)}
        return self._append("metrics", entry, METRICS_KEPT, f"The metrics of step {step}")

    def history(self, after_id: str = BEGINNING, limit: int = METRICS_KEPT) -> list[MetricsRow]:
        """Up to ``limit`` rows after an id, oldest first."""
        return [
            MetricsRow(id_, unix_seconds, int(entry[b"step"]), msgpack.unpackb(entry[b"metrics"]))
            for id_, unix_seconds, entry in self._read("metrics", after_id, limit)
        ]

    def recent(self, limit: int) -> dict[str, float]:
        """The newest value of every metric in the last ``limit`` rows."""
        with storage_errors(self._client):
            rows = self._client.xrevrange(self._key("metrics"), count=limit)
        found: dict[str, float] = {}
        for _, entry in reversed(cast(list[tuple[bytes, dict[bytes, bytes]]], rows)):
            found.update(msgpack.unpackb(entry[b"metrics"]))
        return found

    def _key(self, name: str) -> str:
        return f"{self._namespace}:{name}"

    def _append(self, stream: str, entry: dict[str, Any], kept: int, what: str) -> str | None:
        id_: bytes | None = None
        with _dropped_without_room(what), storage_errors(self._client):
            id_ = cast(
                bytes,
                self._client.xadd(
                    self._key(stream), cast(dict[Any, Any], entry), maxlen=kept, approximate=True
                ),
            )
        return None if id_ is None else id_.decode()

    def _read(
        self, stream: str, after_id: str, limit: int
    ) -> list[tuple[str, float, dict[bytes, bytes]]]:
        try:
            with storage_errors(self._client):
                # "(": after, not from.
                rows = self._client.xrange(self._key(stream), min=f"({after_id}", count=limit)
        except redis.ResponseError as cause:
            raise UserError(
                f"{after_id!r} is not the id of an entry: {cause}.",
                f"Pass an id that was returned before, or {BEGINNING!r}.",
            ) from cause
        entries = cast(list[tuple[bytes, dict[bytes, bytes]]], rows)
        return [(id_.decode(), int(id_.split(b"-")[0]) / 1000, fields) for id_, fields in entries]


@contextmanager
def _dropped_without_room(what: str) -> Iterator[None]:
    try:
        yield
    except StorageFull as cause:
        log.warning("%s is dropped: %s", what, cause)
