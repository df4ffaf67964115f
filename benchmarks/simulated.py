"""Rollout actors without a model: everything around the engine is real, the engine only takes time."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from actors.rollout import POLL_SECONDS, RolloutWorker
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import Prompt, Sample, SampledGroup, SampleRequest
from replay.buffers import open_buffer
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry

ALPHABET = 32
"""Tokens; with Z's of up to ``LONGEST`` nearly all are distinct, the hardest case for the buffer."""
LONGEST = 12
MADE_BEFOREHAND = 2**14
"""Samples that engines hand out in turn: making them is the engines' time, which is not measured here."""
NAP_SECONDS = 0.01


class FreeReward:
    """log R = 0.1 times the length: costs nothing, prefers something."""

    version = 0

    def log_reward(
        self, prompt: Prompt, sequences: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """See :class:`posteriori.seams.Reward`."""
        return [0.1 * np.arange(len(sequence) + 1, dtype=np.float64) for sequence in sequences]


def simulated_problem(prompts: int) -> Problem:
    """``prompts`` X's over a small alphabet, without a language model."""
    moves = LegalMoves.free(list(range(1, ALPHABET + 1)), 0, 1, LONGEST)
    return Problem(
        name="simulated",
        prompts=[Prompt(str(number), {"x": str(number)}) for number in range(prompts)],
        reward=FreeReward(),
        lm=cast(LanguageModel, None),  # nobody asks it anything
        policy_prompt=lambda prompt: [1],
        legal_moves=lambda prompt: moves,
    )


@cache
def samples() -> list[Sample]:
    """What all engines hand out, uniform over the alphabet."""
    random = np.random.default_rng(0)
    made = []
    for n in random.integers(4, LONGEST + 1, MADE_BEFOREHAND).tolist():
        log_q_stop = np.full(n + 1, -3.0, dtype=np.float32)
        log_q_stop[0] = -np.inf
        if n == LONGEST:
            log_q_stop[-1] = 0.0
        tokens = random.integers(1, ALPHABET + 1, n).tolist()
        made.append(Sample(tokens, np.full(n, -3.4, dtype=np.float32), log_q_stop))
    return made


class SimulatedEngine:
    """An engine whose requests finish after a time; see :class:`posteriori.seams.Engine`.

    Args:
        group_seconds: from a request's start to its end; requests in flight share nothing.
        seed: of where in the samples it begins, and of its times.
    """

    def __init__(self, group_seconds: float, seed: int) -> None:
        self._group_seconds = group_seconds
        self._random = np.random.default_rng(seed)
        self._due: list[tuple[float, SampleRequest]] = []
        self._adapters: set[int] = set()
        self._next = int(self._random.integers(MADE_BEFOREHAND))

    def add_adapter(self, version: int, directory: Path) -> None:
        self._adapters.add(version)

    def remove_adapter(self, version: int) -> None:
        self._adapters.discard(version)

    @property
    def adapter_versions(self) -> tuple[int, ...]:
        return tuple(sorted(self._adapters))

    def submit(self, request: SampleRequest) -> None:
        # The first ones at random times, or all actors of a simulation would march in step.
        wait = self._group_seconds * self._random.uniform(0.5, 1.5)
        self._due.append((time.monotonic() + wait, request))

    def cancel(self, request_id: str) -> None:
        self._due = [item for item in self._due if item[1].id != request_id]

    def seconds_to_next(self) -> float:
        """Until a request finishes; infinite without any."""
        first = min((due for due, _ in self._due), default=float("inf"))
        return max(0.0, first - time.monotonic())

    def step(self) -> list[SampledGroup]:
        now = time.monotonic()
        done = [request for due, request in self._due if due <= now]
        self._due = [item for item in self._due if item[0] > now]
        return [SampledGroup(request, self.take(request.n)) for request in done]

    def take(self, n: int) -> list[Sample]:
        """The next ``n`` samples."""
        start, self._next = self._next, self._next + n
        return [samples()[k % MADE_BEFOREHAND] for k in range(start, start + n)]

    @property
    def unfinished(self) -> int:
        return len(self._due)

    def close(self) -> None:
        self._due.clear()


class TimedBuffer:
    """Notes how long each insert took; everything else is the buffer's own."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.insert_seconds: list[float] = []

    def insert(self, trajectories: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._buffer.insert(trajectories)
        finally:
            self.insert_seconds.append(time.perf_counter() - began)


class SimulatedActor:
    """One rollout actor with connections of its own, as its process would have.

    Its turns are taken when something is due, by one of a few threads: a thousand threads would spend the
    machine on waiting for each other.
    """

    def __init__(
        self, number: int, config: RunConfig, problem: Problem, group_seconds: float, parent: Path
    ) -> None:
        self.name = f"actor-{number}"
        client = connect(config.replay.redis_url, patience_seconds=60.0)
        registry = RunRegistry(client, config.run)
        directory = parent / self.name
        directory.mkdir()
        self.buffer = TimedBuffer(open_buffer(client, config))
        self._engine = SimulatedEngine(group_seconds, number)
        self.worker = RolloutWorker(
            self.name,
            self._engine,
            cast(Any, self.buffer),
            RedisAdapters(client, config.run),
            [problem],
            config.sampling,
            seed=number,
            adapter_directory=directory,
            deadline_seconds=config.replay.deadline_seconds,
            heartbeat=lambda fields: registry.beat(self.name, {"state": "sampling", **fields}),
        )

    def turn(self) -> float:
        """One turn of the worker; seconds until the next one is due."""
        self.worker.turn()
        return min(POLL_SECONDS, self._engine.seconds_to_next())

    def stop(self) -> None:
        """End as an actor ends that is not asked to drain."""
        self.worker.run(lambda: True)


class Driver(threading.Thread):
    """Takes the turns of some of the actors, each when it is due."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="driver")
        self.incoming: SimpleQueue[SimulatedActor] = SimpleQueue()
        self.stopped = threading.Event()
        self.failure: UserError | None = None
        self._due: list[tuple[float, int, SimulatedActor]] = []
        self._numbers = count()

    def run(self) -> None:
        """Until stopped, then end all actors."""
        try:
            while not self.stopped.is_set():
                while not self.incoming.empty():
                    self._later(self.incoming.get(), 0.0)
                if not self._due or self._due[0][0] > time.monotonic():
                    time.sleep(NAP_SECONDS)
                    continue
                _, _, actor = heapq.heappop(self._due)
                self._later(actor, actor.turn())
            for _, _, actor in self._due:
                actor.stop()
        except UserError as cause:  # carried to the thread that reports it
            self.failure = cause

    def _later(self, actor: SimulatedActor, seconds: float) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), actor))
