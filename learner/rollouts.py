"""How the rollout actors do, as metrics that stand beside the learner's own in every curve."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.registry import RunRegistry

LOOK_SECONDS = 2.0
"""Actors beat every two seconds: asking more often hears nothing new."""


class RolloutMetrics:
    """``actors`` that sample, their ``samples_per_second`` together, their mean ``actor_idle_ratio``.

    Args:
        registry: of the run.
        look_seconds: least time between two looks at it.
    """

    def __init__(self, registry: RunRegistry, look_seconds: float = LOOK_SECONDS) -> None:
        self._registry = registry
        self._look_seconds = look_seconds
        self._next_look = 0.0
        self._last: dict[str, float] = {}

    def __call__(self) -> dict[str, float]:
        """The newest; raises StorageUnreachable."""
        now = time.monotonic()
        if now < self._next_look:
            return self._last
        self._next_look = now + self._look_seconds
        sampling = [
            component.fields
            for component in self._registry.components().values()
            if component.fields.get("state") == "sampling"
        ]
        rates = [float(fields.get("samples_per_second") or 0.0) for fields in sampling]
        idle = [float(fields.get("idle_ratio") or 0.0) for fields in sampling]
        self._last = {"actors": float(len(sampling)), "samples_per_second": sum(rates)}
        if idle:
            self._last["actor_idle_ratio"] = sum(idle) / len(idle)
        return self._last
