"""The learner in a process of its own, as a Ray actor.

``run.remote()`` blocks until the run ends and raises the first cause if it fails; ``stop`` and
``status`` are answered meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from posteriori import config as run_file
from posteriori.config import RunConfig
from posteriori.device import resolve_device
from posteriori.errors import StorageFull, StorageUnreachable, UserError
from posteriori.freed_memory import return_freed_memory

if TYPE_CHECKING:
    from learner.learner import Learner
    from learner.team import Team
    from replay.registry import RunRegistry

log = logging.getLogger(__name__)

COMPONENT = "learner"
"""Name in the run registry."""

BEAT_SECONDS = 2.0
"""Pause between two heartbeats, which also look for a stop request."""

ORACLE_DIRECTORY = "oracle"
"""Below the run's directory: log R of all strings, shared with the driver."""


class LearnerProcess:
    """What runs inside the process; plain, so that it can be run without Ray.

    Args:
        config: the resolved run file, as plain data.
        redis_url: of the run's Redis; never ``embedded``.
        directory: of the run.
        resume: continue from the newest checkpoint.
    """

    def __init__(
        self, config: dict[str, Any], redis_url: str, directory: str, resume: bool = False
    ) -> None:
        self._config: RunConfig = run_file.parse(config)
        self._redis_url = redis_url
        self._directory = Path(directory)
        self._resume = resume
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._learner: Learner | None = None

    def run(self) -> None:
        """Build model, problems and oracles, then learn until the steps are done.

        Raises:
            UserError: whatever ended the run; it is also reported to the registry.
        """
        from learner.peers import gathered
        from replay.connection import connect
        from replay.registry import RunRegistry

        return_freed_memory()
        client = connect(self._redis_url, patience_seconds=self._config.replay.deadline_seconds)
        registry = RunRegistry(client, self._config.run)
        heart = threading.Thread(target=self._beat, args=(registry,), daemon=True)
        heart.start()
        try:
            with gathered(self._config, registry.event) as team:
                self._learner = self._build(client, registry, team)
                if self._stop.is_set():
                    self._learner.stop()
                self._learner.run()
        except UserError as cause:
            with _unreachable_is_logged():
                registry.fail(COMPONENT, str(cause))
            raise
        finally:
            self._ended.set()
            heart.join()

    def stop(self) -> None:
        """End :meth:`run` after the step it is in, with a checkpoint."""
        self._stop.set()
        if self._learner is not None:
            self._learner.stop()

    def status(self) -> dict[str, str | float]:
        """State, process id, step, version and idle ratio."""
        if self._learner is None:
            return {"state": "starting", "pid": os.getpid()}
        return {
            "pid": os.getpid(),
            "state": "ended" if self._ended.is_set() else "learning",
            "step": float(self._learner.step),
            "version": float(self._learner.version),
            "idle_ratio": self._learner.idle_ratio,
            "rejected": float(self._learner.intake.rejected),
        }

    def _build(self, client: Any, registry: RunRegistry, team: Team | None) -> Learner:
        import torch

        from learner.layers import load_for_learning
        from learner.learner import Learner
        from learner.rollouts import RolloutMetrics
        from posteriori.fitted_reward import store_name
        from posteriori.oracle.cases import evaluator
        from posteriori.problems import build_problems
        from replay.buffers import open_buffer
        from replay.redis_adapters import RedisAdapters

        config = self._config
        torch.set_num_threads(config.learner.threads)
        device = resolve_device(config.learner.device)
        lm = load_for_learning(config, device)
        problems = build_problems(config, lm)
        return Learner(
            config,
            lm,
            problems,
            open_buffer(client, config, config.seed),
            RedisAdapters(client, config.run),
            self._directory,
            reward_adapters=RedisAdapters(client, store_name(config.run)) if config.em else None,
            evaluate=evaluator(
                problems, config.oracle_max_strings, self._directory / ORACLE_DIRECTORY
            ),
            rollouts=RolloutMetrics(registry),
            on_metrics=registry.record,
            on_event=registry.event,
            resume=self._resume,
            team=team,
            device=device,
        )

    def _beat(self, registry: RunRegistry) -> None:
        """Heartbeats until the run ends; passes on a stop that was asked for in the registry."""
        ended = False
        while not ended:
            ended = self._ended.wait(BEAT_SECONDS)
            with _unreachable_is_logged():
                registry.beat(COMPONENT, self.status())
                if registry.stop_requested() is not None:
                    self.stop()


@contextmanager
def _unreachable_is_logged() -> Iterator[None]:
    """The noticeboard is a courtesy: without it the loop itself says what is wrong."""
    try:
        yield
    except (StorageFull, StorageUnreachable) as cause:
        log.warning("%s", cause)


# One thread runs the loop; the others answer `status` and `stop` meanwhile.
LearnerActor = ray.remote(max_concurrency=3, max_restarts=0, max_task_retries=0)(LearnerProcess)
