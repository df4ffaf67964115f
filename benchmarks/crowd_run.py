"""One run of a crowd of simulated actors against a real Redis and a real intake; see ``benchmarks.scaling``."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.crowd import IN_FLIGHT, Commands, Crowd
from benchmarks.simulated import SimulatedEngine
from benchmarks.simulator import GROUP, SimulatedLearner, random_group, run_config
from posteriori.config import RunConfig
from replay.buffers import open_buffer
from replay.connection import connect
from replay.server import EmbeddedServer

GROUPS_MADE = 2048
"""Groups of distinct Z's that a crowd offers in turn. The buffer holds fewer, so what comes again is new."""
CAPACITY_BYTES = 2**24
WARM_SECONDS = 3.0
START_SECONDS = 600.0
STEP_TRAJECTORIES = 256
ADAPTER_BYTES = 2**18


@dataclass(frozen=True)
class CrowdRun:
    """Rates are trajectories a second; CPU is in cores; seconds unless named otherwise."""

    actors: int
    group_seconds: float
    offered: float
    stored: float
    drawn: float
    insert_p50_milliseconds: float
    insert_p99_milliseconds: float
    adapter_versions: int
    adapter_lag_p50: float
    adapter_lag_p99: float
    told_to_wait: float
    redis_cpu: float
    simulator_cpu: float
    intake_cpu: float
    errors: list[str]

    @property
    def efficiency(self) -> float:
        """Stored ÷ offered."""
        return self.stored / self.offered


def _simulate(
    pipe: Connection,
    config: RunConfig,
    path: str,
    actors: int,
    group_seconds: float,
    seconds: float,
) -> None:
    """In a process of its own: the crowd, and what it counted while it was at its height."""
    engine = SimulatedEngine(1.0, seed=0)
    # Versions of the base LM are as old as their arrival, so what was made beforehand is never stale.
    groups = [random_group(engine, n, 0, behaviour="base") for n in range(GROUPS_MADE)]
    commands = Commands(config, groups)
    pipe.send("ready")
    pipe.recv()
    crowd = Crowd(actors, path, commands, group_seconds, GROUP)
    # Its first groups finish within one duration; from then on finishes are spread evenly.
    crowd.run(WARM_SECONDS + min(group_seconds, 10.0))
    crowd.forget()
    pipe.send("begin")
    cpu = time.process_time()
    crowd.run(seconds)
    pipe.send((time.process_time() - cpu, asdict(crowd.counts)))
    crowd.close()


def _learn(pipe: Connection, config: RunConfig, step_seconds: float) -> None:
    """In a process of its own: intake and publications until told to stop."""
    learner = SimulatedLearner(config, step_seconds, ADAPTER_BYTES)
    learner.start()
    while not learner.published and learner.is_alive():
        time.sleep(0.01)
    pipe.send("ready")
    pipe.recv()
    learner.stopped.set()
    learner.join(60.0)
    pipe.send((learner.published, str(learner.failure or "")))


def crowd_run(directory: Path, actors: int, group_seconds: float, seconds: float) -> CrowdRun:
    """So many actors for so long, after a start that is not counted.

    Args:
        directory: for the server, new.
        group_seconds: mean time of a request of 16; two are in flight in each actor.
        seconds: measured.
    """
    offered = actors * IN_FLIGHT * GROUP / group_seconds
    context = multiprocessing.get_context("spawn")
    with EmbeddedServer(directory, CAPACITY_BYTES) as server:
        slack = max(8192, 2 * actors * IN_FLIGHT * GROUP)
        config = run_config([server.url], actors, slack, CAPACITY_BYTES)
        client = connect(server.url)
        buffer = open_buffer(client, config)
        redis_process = psutil.Process(server.pid)
        _load_scripts(config, server.url)
        crowd_end, crowd_pipe = context.Pipe()
        learn_end, learn_pipe = context.Pipe()
        path = server.url.removeprefix("unix://")
        crowd = context.Process(
            target=_simulate,
            args=(crowd_pipe, config, path, actors, group_seconds, seconds),
            daemon=True,
        )
        # Twice as often as the limiter lets it draw: the limiter sets the pace, as in a run.
        step_seconds = 0.5 * min(2.0, STEP_TRAJECTORIES / offered)
        learner = context.Process(
            target=_learn, args=(learn_pipe, config, step_seconds), daemon=True
        )
        learner.start()
        crowd.start()
        for end in (learn_end, crowd_end):
            assert _received(end) == "ready"
        crowd_end.send("go")
        assert _received(crowd_end) == "begin"
        before, redis_cpu = buffer.stats(), _cpu(redis_process)
        intake_cpu, began = _cpu(psutil.Process(learner.pid)), time.monotonic()
        simulator_cpu, counts = _received(crowd_end, seconds)
        wall = time.monotonic() - began
        after, redis_cpu = buffer.stats(), _cpu(redis_process) - redis_cpu
        intake_cpu = _cpu(psutil.Process(learner.pid)) - intake_cpu
        learn_end.send("stop")
        published, failure = _received(learn_end)
        crowd.join()
        learner.join()
    when = dict(published)
    lags = [taken - when[version] for version, taken in counts["taken_up"] if when[version] > began]
    lag = np.quantile(lags or [np.nan], [0.5, 0.99])
    insert = np.quantile(counts["insert_seconds"] or [np.nan], [0.5, 0.99]) * 1e3
    return CrowdRun(
        actors=actors,
        group_seconds=group_seconds,
        offered=offered,
        stored=counts["trajectories"] / wall,
        drawn=(after.drawn - before.drawn) / wall,
        insert_p50_milliseconds=float(insert[0]),
        insert_p99_milliseconds=float(insert[1]),
        adapter_versions=len([1 for _, at in published if at > began]),
        adapter_lag_p50=float(lag[0]),
        adapter_lag_p99=float(lag[1]),
        told_to_wait=counts["waits"] / max(1, counts["waits"] + len(counts["insert_seconds"])),
        redis_cpu=redis_cpu / wall,
        simulator_cpu=simulator_cpu / wall,
        intake_cpu=intake_cpu / wall,
        errors=[*dict.fromkeys(counts["errors"]), *([failure] if failure else [])],
    )


def _load_scripts(config: RunConfig, url: str) -> None:
    """A crowd sends scripts by their digest."""
    from replay.registry import RunRegistry

    client = connect(url)
    open_buffer(client, config).insert(random_group(SimulatedEngine(1.0, seed=1), 0, 0))
    RunRegistry(client, config.run).beat("first", {})


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _received(pipe: Connection, seconds: float = 0.0) -> Any:
    """What the other end sends.

    Raises:
        RuntimeError: nothing within ``START_SECONDS`` more than ``seconds``.
    """
    if not pipe.poll(seconds + START_SECONDS):
        raise RuntimeError("a process of the simulation says nothing")
    return pipe.recv()
