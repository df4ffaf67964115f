"""How many rollout actors there should be, and what to do about it: a pure state machine.

It owns no Ray handles and no clock. The driver tells it what happened and when; :meth:`plan` says
which actors to start and which to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_BACKOFF_SECONDS = 1.0
"""After a death, so that one bad machine cannot make the pool spin."""

LONGEST_BACKOFF_SECONDS = 60.0
"""A cluster that lost a node is tried again within a minute of having room."""

QUARANTINE_AFTER_FAILED_STARTS = 4
"""Deaths in a row of actors that had stored nothing: more of the same will not help, and every start
costs half a minute of a core. Actors that are killed at work are replaced for ever."""


@dataclass
class _Member:
    stopping: bool = False


@dataclass(frozen=True)
class Plan:
    """Ids of actors to start and to stop now."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


class ActorPool:
    """Desired against alive.

    Args:
        desired: actors wanted.
        name: id of the n-th actor ever started, n = 1, 2, …; never the same twice.
    """

    def __init__(self, desired: int, name: Callable[[int], str] = "actor-{}".format) -> None:
        self._name = name
        self._members: dict[str, _Member] = {}
        self._desired = desired
        self._started = 0
        self._to_replace = 0
        self._not_before_seconds = 0.0
        self._failed_starts = 0
        self.deaths = 0
        """Actors that ended without being asked to."""
        self.restarts = 0
        """Actors started in place of dead ones."""
        self.quarantine: str | None = None
        """Why no more actors are started; None: they are. ``scale`` lifts it."""

    @property
    def desired(self) -> int:
        """Actors wanted."""
        return self._desired

    @property
    def alive(self) -> tuple[str, ...]:
        """Actors started and not ended, those asked to stop included, oldest first."""
        return tuple(self._members)

    @property
    def stopping(self) -> tuple[str, ...]:
        """Actors asked to stop that have not ended yet."""
        return tuple(id_ for id_, member in self._members.items() if member.stopping)

    def scale(self, desired: int) -> None:
        """Want another number of actors; whoever asks also asks to try again after a quarantine.

        Raises:
            ValueError: the number is negative.
        """
        if desired < 0:
            raise ValueError(f"cannot keep {desired} actors")
        self._desired = desired
        self.quarantine = None
        self._failed_starts = 0
        self._not_before_seconds = 0.0

    def plan(self, now_seconds: float) -> Plan:
        """What to do now; the actors named are taken to be started and told to stop."""
        serving = [id_ for id_, member in self._members.items() if not member.stopping]
        missing = self._desired - len(serving)
        self._to_replace = min(self._to_replace, max(0, missing))
        if missing < 0:
            # The youngest have the least to lose: the coldest caches, perhaps no engine yet.
            stop = tuple(serving[missing:])
            for id_ in stop:
                self._members[id_].stopping = True
            return Plan(stop=stop)
        if missing == 0 or self.quarantine is not None or now_seconds < self._not_before_seconds:
            return Plan()
        start = []
        for _ in range(missing):
            self._started += 1
            id_ = self._name(self._started)
            self._members[id_] = _Member()
            start.append(id_)
        self.restarts += self._to_replace
        self._to_replace = 0
        return Plan(start=tuple(start))

    def ended(self, actor_id: str) -> None:
        """An actor ended as it was asked to."""
        self._members.pop(actor_id)

    def died(
        self,
        actor_id: str,
        now_seconds: float,
        cause: str,
        *,
        worked: bool = False,
        hopeless: bool = False,
    ) -> None:
        """An actor ended without being asked to, or instead of stopping.

        Args:
            actor_id: an actor that was alive.
            now_seconds: by the clock of ``plan``.
            cause: the first cause, for people.
            worked: it had stored trajectories, so its start was no failure.
            hopeless: another one would end the same way: no more are started.
        """
        member = self._members.pop(actor_id)
        if member.stopping:
            return
        self.deaths += 1
        self._to_replace += 1
        self._failed_starts = 0 if worked else self._failed_starts + 1
        backoff = FIRST_BACKOFF_SECONDS * 2.0 ** max(0, self._failed_starts - 1)
        self._not_before_seconds = now_seconds + min(backoff, LONGEST_BACKOFF_SECONDS)
        if hopeless:
            self.quarantine = cause
        elif self._failed_starts >= QUARANTINE_AFTER_FAILED_STARTS:
            self.quarantine = (
                f"{self._failed_starts} actors in a row died before they stored anything; "
                f"the last: {cause}"
            )
