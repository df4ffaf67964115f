"""How many rollout actors a run wants by itself: a pure controller.

It owns no clock, no Redis and no Ray. :meth:`Autoscaler.decide` is told what is the case and returns a
number of actors with a reason; ``actors/autoscale_hook.py`` measures and obeys.

The target is ``replay.samples_per_insert`` ρ. With I trajectories received and D drawn, the *lead*

    (I − D/ρ) / slack_trajectories,   −1/ρ … 1,

is what the limiter looks at: near 1 actors wait for the learner (too many of them), below 0 the learner has
used more than its share of what arrived and will wait (too few). Between ``LOW_LEAD`` and ``HIGH_LEAD``
nothing is done. What the learner draws may also be too old: a mean staleness above the bound asks for
more actors too, since fresh trajectories then make up too little of the buffer.

What keeps it from flapping, each with the failure it prevents:

- a signal has to last ``hold_seconds``: one slow step is no trend;
- after a change nothing happens for ``settle_seconds``: an engine that is still loading shows in no rate;
- a lead that moved back by ``RECOVERING`` within a settling time is left to go on: where each
  actor brings little, the right number takes many settling times to make up for a wrong one, and would be
  taken for wrong itself;
- the largest number seen to be too few and the smallest seen to be too many are remembered, and the
  next number lies strictly between. When nothing lies between, the larger one stays: waiting actors cost
  less than a learner that waits. After ``MEMORY_SETTLES`` settling times a bound gives way by
  ``FORGETTING``, and at once when the load contradicts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from posteriori.config import AutoscaleConfig

LOW_LEAD = 0.1
"""Below, the learner is about to wait."""

HIGH_LEAD = 0.8
"""Above, actors are about to wait."""

RECOVERING = 0.02
"""Of the slack, in a settling time; slower than this a bound is not reached within the controller's memory."""

GROWTH = 2.0
"""Largest factor of a step while no bound is known: a thousand actors are ten steps away."""

CORRECTION = 1.25
"""First factor where a bound turned out to be wrong; squared as long as it goes on in one direction."""

MEMORY_SETTLES = 20.0
FORGETTING = 0.1
"""Loads change: what was too few an hour ago may be enough now. A bound that gave way all at once would
send the run back to half its actors."""

Pressure = Literal["more", "fewer", "fine"]


@dataclass(frozen=True)
class Load:
    """What the controller looks at.

    Attributes:
        now_seconds: monotonic.
        desired: actors wanted at present, by whoever asked last.
        alive: actors that sample.
        lead: (I − D/ρ) / slack; None: nothing was drawn or received yet.
        staleness_versions: mean of what the learner drew lately; None: unknown.
        gpu_hours: used by this run's actors so far.
    """

    now_seconds: float
    desired: int
    alive: int
    lead: float | None
    staleness_versions: float | None = None
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Actors wanted from now on, and why; ``spent``: the budget is used up, and the run should end."""

    desired: int
    reason: str
    spent: bool = False


class Autoscaler:
    """Decides how many actors there should be; see the module.

    Args:
        config: bounds, targets and times.
        max_staleness_versions: of the buffer; the default target of the staleness is half of it.
    """

    def __init__(self, config: AutoscaleConfig, max_staleness_versions: int) -> None:
        self._config = config
        self._staleness_target = (
            config.staleness_versions
            if config.staleness_versions is not None
            else max_staleness_versions / 2
        )
        self._pressure: Pressure = "fine"
        self._since_seconds = 0.0
        self._changed_seconds = -math.inf
        self._looked: tuple[float, float] | None = None  # when, and at which lead
        self._trend = 0.0
        self._wanted: int | None = None
        self._too_few: tuple[int, float] | None = None
        self._too_many: tuple[int, float] | None = None
        self._factor = GROWTH

    def decide(self, load: Load) -> Decision:
        """Actors wanted now. Within the bounds, but for 0: by hand it pauses, and a spent budget stops."""
        config, now = self._config, load.now_seconds
        if config.gpu_hours is not None and load.gpu_hours >= config.gpu_hours:
            what = f"{load.gpu_hours:.2f} GPU-hours used of {config.gpu_hours:g}"
            return Decision(0, what, spent=True)
        if load.desired == 0:
            return self._keep(0, now, "paused by hand")
        desired = min(max(load.desired, config.min_actors), config.max_actors)
        if desired != self._wanted:
            # Somebody else asked, or this is the start: look at that number for a while.
            return self._change(desired, load, "asked for")
        self._look(load)
        pressure, why = self._read(load)
        if pressure != self._pressure:
            self._pressure, self._since_seconds = pressure, now
        settled = now - self._changed_seconds >= config.settle_seconds
        held = now - self._since_seconds >= config.hold_seconds
        if pressure == "fine" or not settled or not held or load.alive < desired:
            return Decision(desired, why)
        target = self._next(desired, pressure, now)
        return Decision(desired, why) if target == desired else self._change(target, load, why)

    def _look(self, load: Load) -> None:
        """Keep how far the lead moved in the last settling time."""
        if load.lead is None:
            return
        if self._looked is None:
            self._looked = (load.now_seconds, load.lead)
        elif load.now_seconds - self._looked[0] >= self._config.settle_seconds:
            self._trend = load.lead - self._looked[1]
            self._looked = (load.now_seconds, load.lead)

    def _read(self, load: Load) -> tuple[Pressure, str]:
        if load.lead is None:
            return "fine", "nothing drawn yet"
        if load.lead > HIGH_LEAD:
            if self._trend < -RECOVERING:
                return "fine", "the learner catches up"
            return "fewer", f"actors are {load.lead:.0%} of the slack ahead of the learner"
        if load.lead < LOW_LEAD:
            if self._trend > RECOVERING:
                return "fine", "the actors catch up"
            return "more", f"the learner is about to wait (lead {load.lead:.0%} of the slack)"
        age = load.staleness_versions
        if age is not None and age > self._staleness_target:
            return "more", f"trajectories drawn are {age:.1f} versions old on average"
        return "fine", "on target"

    def _next(self, desired: int, pressure: Pressure, now: float) -> int:
        """The number to try, between what is known to be too few and too many."""
        config = self._config
        memory = MEMORY_SETTLES * config.settle_seconds
        if self._too_few is not None and now - self._too_few[1] > memory:
            self._too_few = (math.floor((1 - FORGETTING) * self._too_few[0]), now)
        if self._too_many is not None and now - self._too_many[1] > memory:
            self._too_many = (math.ceil((1 + FORGETTING) * self._too_many[0]), now)
        if pressure == "more":
            self._too_few = (desired, now)
            if self._too_many is not None and self._too_many[0] <= desired:
                self._too_many, self._factor = None, CORRECTION  # it has become too few
        else:
            self._too_many = (desired, now)
            if self._too_few is not None and self._too_few[0] >= desired:
                self._too_few, self._factor = None, CORRECTION
        least, most = config.min_actors, config.max_actors
        if self._too_few is not None and self._too_many is not None:
            low, high = self._too_few[0], self._too_many[0]
            target = high if high - low == 1 else (low + high) // 2
        elif pressure == "more":
            target = math.ceil(desired * self._factor)
        else:
            target = math.floor(desired / self._factor)
        if None in (self._too_few, self._too_many):
            self._factor = min(GROWTH, self._factor**2)
        return min(max(target, least), most)

    def _change(self, desired: int, load: Load, why: str) -> Decision:
        now = load.now_seconds
        self._wanted, self._changed_seconds = desired, now
        self._pressure, self._since_seconds = "fine", now
        self._looked = None if load.lead is None else (now, load.lead)
        self._trend = 0.0
        return Decision(desired, why)

    def _keep(self, desired: int, now: float, why: str) -> Decision:
        self._wanted, self._changed_seconds = desired, now
        return Decision(desired, why)
