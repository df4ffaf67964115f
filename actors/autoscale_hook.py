"""Measures what the autoscaler looks at, and asks the run's registry for the number it decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from actors.autoscale import Autoscaler, Load
from posteriori.config import RunConfig
from posteriori.seams import Buffer
from replay.registry import RunRegistry

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks: a few round trips; holding times are several of these."""

STALENESS_ROWS = 20
"""Learner steps whose newest staleness is taken for the present one."""

GPU_SECONDS = "actor_gpu_seconds"


class AutoscaleHook:
    """Asks for as many rollout actors as :class:`actors.autoscale.Autoscaler` says.

    Args:
        config: the run, with ``autoscale``.
        registry: of the run: what is wanted, and events when that changes.
        buffer: whose counters say who waits for whom.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: RunRegistry,
        buffer: Buffer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.autoscale is not None
        self._replay = config.replay
        self._registry = registry
        self._buffer = buffer
        self._clock = clock
        self._scaler = Autoscaler(config.autoscale, config.replay.max_staleness_versions)
        self._looked_seconds: float | None = None

    def look(self, sampling: int, gpus: float) -> None:
        """Look, at most every ``LOOK_SECONDS``, and ask for another number if that is decided.

        Args:
            sampling: actors that sample.
            gpus: that all actors of the run hold, those still starting included.

        Raises:
            StorageUnreachable: the run's Redis does not answer.
        """
        now = self._clock()
        elapsed = 0.0 if self._looked_seconds is None else now - self._looked_seconds
        if self._looked_seconds is not None and elapsed < LOOK_SECONDS:
            return
        self._looked_seconds = now
        gpu_seconds = self._registry.add(GPU_SECONDS, elapsed * gpus)
        desired = self._registry.desired_actors() or 0
        decision = self._scaler.decide(
            Load(
                now,
                desired,
                sampling,
                self._lead(),
                self._registry.recent(STALENESS_ROWS).get("staleness"),
                gpu_seconds / 3600,
            )
        )
        if decision.spent:
            self._registry.event("budget_spent", f"The run stops: {decision.reason}.")
            self._registry.request_stop(decision.reason)
        elif decision.desired != desired:
            what = f"{decision.desired} rollout actors wanted in place of {desired}: {decision.reason}."
            log.info("%s", what)
            self._registry.set_desired_actors(decision.desired)
            self._registry.event("autoscaled", what, desired=decision.desired)

    def _lead(self) -> float | None:
        """(I − D/ρ) / slack; None until the learner has begun to draw."""
        stats = self._buffer.stats()
        if stats.drawn == 0:
            return None
        received = stats.inserted + stats.merged + stats.dropped
        ahead = received - stats.drawn / self._replay.samples_per_insert
        return ahead / self._replay.slack_trajectories
