"""The rollout worker as a Ray actor.

Its constructor is quick; :meth:`RolloutActor.run` builds everything and samples until it is told to
stop. The reference that ``run.remote()`` returns is how the pool learns of the actor's end: it
resolves when the actor stopped as asked, and raises the first cause when it did not.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from posteriori import config as run_file
from posteriori.config import RunConfig
from posteriori.errors import RewardError
from posteriori.freed_memory import return_freed_memory

if TYPE_CHECKING:
    from actors.rollout import Heartbeat, RolloutWorker


def actor_seed(run_seed: int, actor_id: str) -> int:
    """A seed of its own for every actor of every run."""
    digest = hashlib.blake2b(actor_id.encode(), digest_size=8).digest()
    sequence = np.random.SeedSequence([run_seed, int.from_bytes(digest, "little")])
    return int(sequence.generate_state(1, np.uint32)[0])


class Rollout:
    """What runs inside the actor's process; plain, so that it can be run without Ray.

    Args:
        config: the resolved run file, as plain data.
        redis_url: of the run's Redis; never ``embedded``.
        actor_id: unique among all actors of the run, of all its restarts too.
        parent: where the actor's files go; None: the system's directory for temporary files.
    """

    def __init__(
        self, config: dict[str, Any], redis_url: str, actor_id: str, parent: str | None = None
    ) -> None:
        self._config: RunConfig = run_file.parse(config)
        self._redis_url = redis_url
        self._actor_id = actor_id
        self._parent = parent
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._worker: RolloutWorker | None = None

    def run(self) -> None:
        """Build model, problems and engine, test the engine, then sample until told to stop.

        Raises:
            UserError: anything that keeps the actor from sampling; a RewardError is also reported
                to the registry as what ends the run, since no other actor would fare better.
        """
        return_freed_memory()
        with TemporaryDirectory(prefix=f"{self._actor_id}-", dir=self._parent) as directory:
            self._sample(Path(directory))

    def status(self) -> Heartbeat:
        """Counters of the worker; while the engine starts: nothing but the state."""
        return {"state": "starting"} if self._worker is None else self._worker.status()

    def stop(self, drain: bool = False) -> None:
        """End :meth:`run` after its current turn or, to ``drain``, after the groups in flight."""
        if not drain:
            self._hurry.set()
        self._stop.set()

    def _sample(self, directory: Path) -> None:
        import torch

        from actors.engines import coarsest_dtype, start_engine
        from actors.gold import LEASE_SECONDS, TASK, GoldSupply
        from actors.reward_follower import RewardFollower
        from actors.rollout import RolloutWorker
        from actors.self_test import self_test, unconstrained
        from posteriori.fitted_reward import FittedReward, store_name
        from posteriori.lm import LanguageModel
        from posteriori.problems import build_problems
        from replay.buffers import open_buffer
        from replay.connection import connect
        from replay.redis_adapters import RedisAdapters
        from replay.registry import RunRegistry

        config, sampling = self._config, self._config.sampling
        torch.set_num_threads(sampling.threads)
        client = connect(self._redis_url, patience_seconds=config.replay.deadline_seconds)
        registry = RunRegistry(client, config.run)
        registry.beat(self._actor_id, {"state": "starting"})
        device = "cuda" if sampling.gpus_per_actor > 0 else "cpu"
        lm = LanguageModel.load(config.model, dtype=config.dtype, device=device)
        problems = build_problems(config, lm)
        rewards = None
        if config.em is not None:
            rewards = RewardFollower(
                FittedReward(problems, config.em.objective),
                RedisAdapters(client, store_name(config.run)),
                directory / "rewards",
            )
        seed = actor_seed(config.seed, self._actor_id)
        engine = start_engine(config, problems, seed)
        try:
            prompt = problems[0].prompts[0]
            self_test(
                engine,
                lm.model,
                problems[0].policy_ids(prompt),
                unconstrained(problems[0].moves(prompt), lm.vocabulary_size),
                rank=config.learner.lora_rank,
                dtype=coarsest_dtype(config),
            )

            def beat(fields: Heartbeat) -> None:
                registry.beat(self._actor_id, {"state": "sampling", **fields})
                if registry.stop_requested() is not None:
                    self.stop()

            self._worker = RolloutWorker(
                self._actor_id,
                engine,
                open_buffer(client, config),
                RedisAdapters(client, config.run),
                problems,
                sampling,
                seed=seed,
                adapter_directory=directory,
                deadline_seconds=config.replay.deadline_seconds,
                heartbeat=beat,
                gold=GoldSupply(
                    problems,
                    claim=lambda: registry.claim(TASK, self._actor_id, LEASE_SECONDS),
                    settle=lambda: registry.settle(TASK),
                ),
                rewards=rewards,
                on_event=lambda kind, what: registry.event(kind, what, actor=self._actor_id),
            )
            self._worker.run(self._stop.is_set, self._hurry.is_set)
        except RewardError as cause:
            registry.fail(self._actor_id, str(cause))
            raise
        finally:
            engine.close()


# One thread runs the loop; the others answer `status` and `stop` meanwhile.
RolloutActor = ray.remote(max_concurrency=3, max_restarts=0, max_task_retries=0)(Rollout)
