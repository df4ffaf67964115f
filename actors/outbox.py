"""Finished groups on their way into the replay buffer. None is lost while the buffer says wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posteriori.errors import CorruptPayload, StorageFull, StorageUnreachable, WaitTimeout
from posteriori.seams import Buffer
from posteriori.trajectory import Trajectory

FIRST_PAUSE_SECONDS = 0.01
QUARANTINE_AFTER_REJECTIONS = 3
"""Malformed groups in a row: one may be a flipped bit, three are an engine that is broken."""

LONGEST_PAUSE_SECONDS = 0.5
"""Long enough that a hundred actors ask a few hundred times a second, a trifle to Redis."""


@dataclass
class OutboxCounts:
    """Trajectories by what became of them, since the actor began."""

    inserted: int = 0
    merged: int = 0
    dropped: int = 0
    rejected: int = 0


class Outbox:
    """A bounded queue of groups in front of a buffer.

    Args:
        buffer: where groups go.
        capacity_groups: when this many wait, the actor should not begin another group.
        deadline_seconds: how long the buffer may refuse everything before that is an error.
        clock: seconds, monotonic.
        on_event: called with (kind, message): ``rejected`` for a malformed group, which is dropped,
            ``quarantined`` when they were too many in a row.
    """

    def __init__(
        self,
        buffer: Buffer,
        capacity_groups: int,
        deadline_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[str, str], object] | None = None,
    ) -> None:
        self._buffer = buffer
        self._capacity = capacity_groups
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._on_event = on_event or (lambda kind, message: None)
        self._rejected_in_a_row = 0
        self._groups: deque[list[Trajectory]] = deque()
        self._waiting_since: float | None = None
        self._next_attempt = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self.counts = OutboxCounts()
        self.reason: str | None = None
        """Why the buffer takes nothing at the moment; None: it does."""

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def full(self) -> bool:
        """No room for another group."""
        return len(self._groups) >= self._capacity

    @property
    def pause_seconds(self) -> float:
        """Until the next attempt; 0: now."""
        return max(0.0, self._next_attempt - self._clock())

    def put(self, group: Sequence[Trajectory]) -> None:
        """Queue one group; also beyond capacity, for those that were in flight already."""
        self._groups.append(list(group))

    def flush(self) -> None:
        """Insert what the buffer takes, unless a pause is on.

        Raises:
            WaitTimeout: it has taken nothing for ``deadline_seconds``; names its reason.
            CorruptPayload: ``QUARANTINE_AFTER_REJECTIONS`` groups in a row were malformed.
            ProducerQuarantined: the learner has refused too many of this actor's trajectories.
        """
        if self.pause_seconds > 0:
            return
        while self._groups:
            try:
                receipt = self._buffer.insert(self._groups[0])
                reason = receipt.wait
            except (StorageFull, StorageUnreachable) as cause:
                reason = str(cause)
            except CorruptPayload as cause:
                self._reject(cause)
                continue
            if reason is not None:
                self._wait(reason)
                return
            self._groups.popleft()
            self._rejected_in_a_row = 0
            self.counts.inserted += receipt.inserted
            self.counts.merged += receipt.merged
            self.counts.dropped += receipt.dropped
            self.reason = self._waiting_since = None
            self._pause = FIRST_PAUSE_SECONDS

    def _reject(self, cause: CorruptPayload) -> None:
        """Drop the group; too many in a row end the actor, and another one takes its place."""
        self.counts.rejected += len(self._groups.popleft())
        self._rejected_in_a_row += 1
        self._on_event("rejected", str(cause))
        if self._rejected_in_a_row >= QUARANTINE_AFTER_REJECTIONS:
            what = f"{self._rejected_in_a_row} groups in a row were malformed; the last: {cause.problem}"
            self._on_event("quarantined", what)
            raise CorruptPayload(what, cause.fix) from cause

    def _wait(self, reason: str) -> None:
        now = self._clock()
        self.reason = reason
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since > self._deadline_seconds:
            raise WaitTimeout(
                f"The replay buffer took no trajectories for {self._deadline_seconds:g} s: {reason}",
                "Look whether the learner runs, or raise `replay.deadline_seconds`.",
            )
        self._next_attempt = now + self._pause
        self._pause = min(2.0 * self._pause, LONGEST_PAUSE_SECONDS)
