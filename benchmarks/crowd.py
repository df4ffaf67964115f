"""A thousand rollout actors in one process: what each would send to Redis, made beforehand, sent when it is due.

The bytes are those that the real outbox's buffer, adapter store and registry put on the wire: they are written
down by a client that sends nothing. Each actor has a connection of its own and waits for a reply before it sends
again, as its process would; what an actor computes itself (sampling, scoring, encoding) is its own machine's.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import numpy as np
import redis

from actors.rollout import HEARTBEAT_SECONDS, POLL_SECONDS
from posteriori.config import RunConfig
from posteriori.trajectory import Trajectory
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry

IN_FLIGHT = 2
RETRY_SECONDS = 0.1
"""Pause after the buffer has said to wait; an outbox pauses between 0.01 and 0.5 s."""
RECEIVE_BYTES = 2**18
TAKEN = [1, 0, 0, 0, 0]
"""An insert's reply as the writer's client pretends it."""


class Writer(redis.Redis):
    """A client that writes down commands instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[bytes] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """See ``redis.Redis``."""
        encode = self.get_encoder().encode
        pack: Any = hiredis.pack_command
        self._written.append(pack(tuple(encode(argument) for argument in args)))
        return TAKEN if args[0] == "EVALSHA" else None

    def take(self) -> bytes:
        """What was written since the last time, as one string."""
        written, self._written = b"".join(self._written), []
        return written


class Commands:
    """What actors of a run send.

    Args:
        config: of the run.
        groups: what they insert, in turn.
    """

    def __init__(self, config: RunConfig, groups: Sequence[Sequence[Trajectory]]) -> None:
        writer = Writer()
        self._writer = writer
        buffer = RedisBuffer(writer, config.run, config.replay)
        self._adapters = RedisAdapters(writer, config.run)
        self._registry = RunRegistry(writer, config.run)
        self._run = config.run
        self.inserts: list[bytes] = []
        for group in groups:
            buffer.insert(group)
            self.inserts.append(writer.take())
        self._adapters.latest()
        self.latest = writer.take()

    def beat(self, name: str) -> bytes:
        """A heartbeat of a sampling actor, and the look for a stop request that goes with it."""
        fields: dict[str, Any] = {
            "state": "sampling",
            **{f"counter_{k}": k * 1.5 for k in range(28)},
        }
        self._registry.beat(name, fields)
        self._registry.stop_requested()
        return self._writer.take()

    def fetch(self, version: int) -> bytes:
        """The files of an adapter."""
        space = f"posteriori:{{{self._run}}}:adapters"
        self._writer.execute_command("HGET", f"{space}:manifest:{version}", "checksum")
        self._writer.execute_command("HGETALL", f"{space}:files:{version}")
        return self._writer.take()


@dataclass
class Counts:
    """What a crowd did since :meth:`Crowd.forget`."""

    trajectories: int = 0
    waits: int = 0
    insert_seconds: list[float] = field(default_factory=list)
    taken_up: list[tuple[int, float]] = field(default_factory=list)
    """(version, monotonic seconds) of each adapter that an actor has fetched."""
    errors: list[str] = field(default_factory=list)


class _Actor:
    def __init__(self, name: str, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.reader = hiredis.Reader()
        self.name = name
        self.version = 0
        self.beat = b""
        self.queue: deque[tuple[str, bytes, float]] = deque()
        self.sent: tuple[str, bytes, float] | None = None
        self.replies = 0


class Crowd:
    """Actors and their event loop.

    Args:
        count: of actors.
        path: of the server's socket.
        commands: what they send.
        group_seconds: a request takes between half and one and a half of this.
        group: trajectories of each insert.
    """

    def __init__(
        self, count: int, path: str, commands: Commands, group_seconds: float, group: int
    ) -> None:
        self._commands, self._group_seconds, self._group = commands, group_seconds, group
        self._random = np.random.default_rng(count)
        self._events: list[tuple[float, int, str, _Actor, bytes]] = []
        self._numbers = itertools.count()
        self._inserts: Iterator[bytes] = itertools.cycle(commands.inserts)
        self._selector = selectors.EpollSelector()
        self._actors = []
        self.counts = Counts()
        now = time.monotonic()
        for number in range(count):
            actor = _Actor(f"actor-{number}", path)
            actor.beat = commands.beat(actor.name)
            self._selector.register(actor.socket, selectors.EVENT_READ, actor)
            self._actors.append(actor)
            self._at(now + self._random.uniform(0, POLL_SECONDS), "poll", actor)
            self._at(now + self._random.uniform(0, HEARTBEAT_SECONDS), "beat", actor)
            for _ in range(IN_FLIGHT):
                self._at(now + self._random.uniform(0, group_seconds), "group", actor)

    def forget(self) -> None:
        """Count from here on."""
        self.counts = Counts()

    def run(self, seconds: float) -> None:
        """Let the actors live for so long."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            while self._events and self._events[0][0] <= now:
                due, _, kind, actor, command = heapq.heappop(self._events)
                self._happen(due, kind, actor, command)
            until = min(end, self._events[0][0] if self._events else end)
            for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
                self._receive(key.data)

    def close(self) -> None:
        """Leave."""
        for actor in self._actors:
            actor.socket.close()
        self._selector.close()

    def _at(self, when: float, kind: str, actor: _Actor, command: bytes = b"") -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, actor, command))

    def _happen(self, due: float, kind: str, actor: _Actor, command: bytes) -> None:
        if kind == "poll":
            self._at(due + POLL_SECONDS, kind, actor)
            self._send(actor, kind, self._commands.latest, due)
        elif kind == "beat":
            self._at(due + HEARTBEAT_SECONDS, kind, actor)
            self._send(actor, kind, actor.beat, due)
        else:  # a group is finished, or offered again
            self._send(actor, "insert", command or next(self._inserts), due)

    def _send(self, actor: _Actor, kind: str, command: bytes, due: float) -> None:
        actor.queue.append((kind, command, due))
        self._next(actor)

    def _next(self, actor: _Actor) -> None:
        """Send what comes next unless a reply is awaited."""
        if actor.sent is None and actor.queue:
            actor.sent = actor.queue.popleft()
            actor.replies = 2 if actor.sent[0] in ("beat", "fetch") else 1
            actor.socket.sendall(actor.sent[1])

    def _receive(self, actor: _Actor) -> None:
        actor.reader.feed(actor.socket.recv(RECEIVE_BYTES))
        while (reply := actor.reader.gets()) is not False:
            assert actor.sent is not None
            kind, command, due = actor.sent
            actor.replies -= 1
            if isinstance(reply, Exception):
                self.counts.errors.append(str(reply))
            if actor.replies:
                continue
            actor.sent = None
            self._answered(actor, kind, command, due, reply)
            self._next(actor)

    def _answered(self, actor: _Actor, kind: str, command: bytes, due: float, reply: Any) -> None:
        now = time.monotonic()
        if kind == "insert":
            if isinstance(reply, list) and reply[0] == 0:
                # Nothing is sampled for a group that has no room: it is offered again.
                self.counts.waits += 1
                self._at(now + RETRY_SECONDS, "again", actor, command)
                return
            self.counts.trajectories += self._group
            self.counts.insert_seconds.append(now - due)
            self._at(now + self._duration(), "group", actor)
        elif kind == "poll" and reply is not None and int(reply) > actor.version:
            actor.version = int(reply)
            actor.queue.appendleft(("fetch", self._commands.fetch(actor.version), now))
        elif kind == "fetch":
            self.counts.taken_up.append((actor.version, now))

    def _duration(self) -> float:
        return float(self._group_seconds * self._random.uniform(0.5, 1.5))
