"""Slow learner, slow actors, any limits: what is held stays bounded, nobody waits for ever."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actors.outbox
from actors.rollout import RolloutWorker
from learner.intake import Intake
from posteriori.config import ReplayConfig, RunConfig, SamplingConfig
from posteriori.errors import WaitTimeout
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.seams import Buffer, Engine, Sample, SampledGroup, SampleRequest
from posteriori.trajectory import Trajectory
from replay.connection import connect
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer
from tests.learner.helpers import random_strings, run_config, tiny_problem

pytestmark = [pytest.mark.faults, pytest.mark.slow]

RATES = st.sampled_from([0.1, 0.5, 1.0, 3.0, 20.0])


class FakeEngine:
    """Finishes a request after a number of steps, with random strings."""

    def __init__(self, steps: int, seed: int) -> None:
        self._steps = steps
        self._seeds = np.random.default_rng(seed)
        self._running: deque[tuple[SampleRequest, int]] = deque()
        self.adapter_versions: tuple[int, ...] = ()
        self.begun_with: list[int] = []

    def add_adapter(self, version: int, directory: Path) -> None:
        self.adapter_versions = (*self.adapter_versions, version)

    def remove_adapter(self, version: int) -> None:
        self.adapter_versions = tuple(v for v in self.adapter_versions if v != version)

    def submit(self, request: SampleRequest) -> None:
        self._running.append((request, self._steps))
        self.begun_with.append(request.adapter_version)

    def cancel(self, request_id: str) -> None:
        self._running = deque(row for row in self._running if row[0].id != request_id)

    @property
    def unfinished(self) -> int:
        return len(self._running)

    def step(self) -> list[SampledGroup]:
        self._running = deque((request, left - 1) for request, left in self._running)
        done = [request for request, left in self._running if left <= 0]
        self._running = deque(row for row in self._running if row[1] > 0)
        return [SampledGroup(request, self._samples(request)) for request in done]

    def close(self) -> None:
        self._running.clear()

    def _samples(self, request: SampleRequest) -> list[Sample]:
        found = []
        for z in random_strings(request.moves, max(2, request.n), int(self._seeds.integers(2**31))):
            stop = np.full(len(z) + 1, -1.0, np.float32)
            found.append(Sample(z, np.full(len(z), -1.0, np.float32), stop))
        return found[: request.n]


@pytest.fixture(scope="module")
def problem(tiny_lm: LanguageModel) -> Problem:
    return tiny_problem(tiny_lm, contexts=(" the",))


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("speeds"), capacity_bytes=2**26) as server:
        yield server


def drawn_by(intake: Intake) -> list[list[Trajectory]]:
    """The groups of a step, none where the learner would wait."""
    try:
        return intake.draw()
    except WaitTimeout:
        return []


@pytest.mark.parametrize("kind", ["memory", "redis"])
@given(data=st.data())
@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_the_speeds_all_is_bounded_and_nobody_waits_for_ever(
    kind: str,
    module_server: EmbeddedServer,
    problem: Problem,
    tiny_lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:
    """May be lost: nothing. Real rollout loops, intake and buffers; only the engines are fake."""
    # An actor asks at every turn: waiting is then a turn without progress and costs no time.
    monkeypatch.setattr(actors.outbox, "FIRST_PAUSE_SECONDS", 0.0)
    sampling = SamplingConfig(
        group_size=data.draw(st.integers(2, 8)),
        groups_in_flight=data.draw(st.integers(1, 4)),
        base_share=0.0,
    )
    step = data.draw(st.integers(2, 24))
    slack = max(step, sampling.group_size * sampling.groups_in_flight) + data.draw(
        st.integers(0, 40)
    )
    limits = ReplayConfig(
        capacity_bytes=2**16,
        capacity_per_prompt=data.draw(st.integers(8, 100)),
        samples_per_insert=data.draw(RATES),
        slack_trajectories=slack,
        max_staleness_versions=data.draw(st.integers(1, 4)),
        recent_share=1.0,
        prioritised_share=0.0,
        deadline_seconds=1e-9,
    )
    config: RunConfig = run_config(tiny_lm, prompts_per_step=1).model_copy(
        update={"replay": limits, "sampling": sampling}
    )
    config = config.model_copy(
        update={"learner": config.learner.model_copy(update={"trajectories_per_prompt": step})}
    )
    buffer = _buffer(kind, module_server, limits)
    adapters = MemoryAdapters("r")
    publish_every = data.draw(st.integers(1, 3))
    state = {"steps": 0, "version": 0}
    intake = Intake(
        config, {problem.name: problem}, buffer, threading.Event(), lambda *_: None,
        lambda: state["version"],
    )  # fmt: skip
    drawn_trajectories = 0

    def learn() -> bool:
        nonlocal drawn_trajectories
        groups = drawn_by(intake)
        if not groups:
            return False
        drawn_trajectories += step
        for t in groups[0]:  # one prompt, drawn by recency alone
            assert state["version"] - t.adapter_version <= limits.max_staleness_versions
        state["steps"] += 1
        if state["steps"] % publish_every == 0:
            state["version"] += 1
            adapters.publish(state["version"], {"weights": b"x"})
            adapters.prune(4)
            buffer.set_learner_version(state["version"])
        return True

    with TemporaryDirectory() as directory:
        engines: list[FakeEngine] = []
        workers = []
        for number in range(data.draw(st.integers(1, 3))):
            engine = FakeEngine(data.draw(st.integers(1, 6)), number)
            checked: Engine = engine
            engines.append(engine)
            workers.append(
                RolloutWorker(
                    f"actor-{number}", checked, buffer, adapters, [problem], sampling, seed=number,
                    adapter_directory=Path(directory) / str(number), deadline_seconds=1e9,
                    poll_seconds=0.0,
                )
            )  # fmt: skip

        def check_bounds(wide: int) -> None:
            stats = buffer.stats()
            assert stats.payload_bytes <= limits.capacity_bytes
            assert stats.trajectories <= limits.capacity_per_prompt
            received = stats.inserted + stats.merged + stats.dropped
            ahead = received - stats.drawn / limits.samples_per_insert
            # While the learner waits for younger data, actors may go on: see replay/limits.py.
            stale = state["version"] - stats.newest_version
            if stale <= limits.max_staleness_versions and not wide:
                assert ahead <= slack + most_at_once
            assert stats.drawn - received * limits.samples_per_insert <= slack + step
            for worker in workers:
                status = worker.status()
                held = int(status["groups_in_outbox"]) + int(status["groups_in_flight"])
                assert held <= 2 * sampling.groups_in_flight

        most_at_once = len(workers) * 2 * sampling.groups_in_flight * sampling.group_size
        schedule: Sequence[tuple[int, int]] = data.draw(
            st.lists(
                st.tuples(st.integers(0, len(workers)), st.integers(1, 15)), min_size=3, max_size=8
            )
        )
        waived = 0
        for who, turns in schedule:
            for _ in range(turns):
                if who == len(workers):
                    learn()
                else:
                    workers[who].turn()
            stats = buffer.stats()
            waived |= state["version"] - stats.newest_version > limits.max_staleness_versions
            check_bounds(waived)
        # However they stand now: taking turns, the learner gets on.
        reached, rounds = state["steps"], 0
        while state["steps"] < reached + 4:
            rounds += 1
            assert rounds < 2000, "nobody gets on"
            for worker in workers:
                worker.turn()
            learn()
        assert any(engine.begun_with for engine in engines)


def _buffer(kind: str, server: EmbeddedServer, limits: ReplayConfig) -> Buffer:
    if kind == "memory":
        return MemoryBuffer(limits, seed=0)
    client = connect(server.url)
    client.flushall()
    return RedisBuffer(client, "r", limits, seed=0)
