"""Samples a second with one and two real actors, and with 1 to 1,000 simulated ones up to what saturates first.

    python -m benchmarks.scaling                  # three to four minutes on two cores
    python -m benchmarks.scaling --quick

Real: two processes, each with a vLLM engine and a `RolloutWorker` pinned to a core, one Redis; alone and together
in turn. Efficiency is what both store together ÷ the sum of what each stores alone. Simulated (`benchmarks.crowd`):
real Redis, real bytes, a real learner's intake drawing one trajectory for each that arrives, adapters of 256 KiB
published and fetched; efficiency is stored ÷ offered. Then 1,000 actors offer more and more. Processes that are not
part of a run (simulator, intake) share the machine with Redis, so their CPU is in the table too.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.crowd_run import CrowdRun, crowd_run
from benchmarks.measure import Report, Row, Target, main
from benchmarks.training_side import core
from posteriori.config import RunConfig, parse
from replay.server import EmbeddedServer

TARGET = Target(0.9, "at least")
ACTORS = (1, 10, 100, 1000)
GROUP_SECONDS = 10.0
FASTER = (4.0, 2.5, 1.5)
"""Seconds of a group with the most actors, until an efficiency falls below the target."""
SECONDS = 12.0
REAL_PAIRS, REAL_SECONDS = 5, 4.0
START_SECONDS = 600.0
PROBLEM = {
    "name": "z",
    "kind": "tempered",
    "prompts": [{"x": f"{name} found a"} for name in ("Mia", "Tom", "Anna", "Ben")],
    "temperature": 0.8,
    "max_tokens": 12,
}


def act(pipe: Connection, config: RunConfig, url: str, number: int, cores: list[int]) -> None:
    """In a process of its own: an actor on ``cores`` that samples for as long as it is told."""
    from actors.engines import start_engine
    from actors.rollout import RolloutWorker
    from benchmarks.sampler_efficiency import after
    from posteriori.lm import LanguageModel
    from posteriori.problems import build_problems
    from replay.buffers import open_buffer
    from replay.connection import connect
    from replay.redis_adapters import RedisAdapters

    psutil.Process().cpu_affinity(cores)
    torch.set_num_threads(1)
    problems = build_problems(config, LanguageModel.load(config.model))
    engine = start_engine(config, problems, number)
    psutil.Process().cpu_affinity(cores)  # vLLM may have bound the process otherwise
    client = connect(url)
    with TemporaryDirectory(prefix="actor-") as directory:
        worker = RolloutWorker(
            f"actor-{number}",
            engine,
            open_buffer(client, config),
            RedisAdapters(client, config.run),
            problems,
            config.sampling,
            seed=number,
            adapter_directory=Path(directory),
        )
        pipe.send("ready")
        while (seconds := pipe.recv()) is not None:
            samples, before = worker.counts.samples, sum(worker.counts.seconds.values())
            worker.run(after(seconds, worker))
            spent = sum(worker.counts.seconds.values()) - before
            pipe.send((worker.counts.samples - samples) / spent)
    engine.close()


def real_actors(model: str, engine: str, pairs: int, seconds: float) -> Row:
    """One and two actors, in turn."""
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory(prefix="scaling-") as parent,
        EmbeddedServer(Path(parent) / "redis", 2**26) as server,
    ):
        config = parse(
            {
                "run": "scaling",
                "model": model,
                "problems": [PROBLEM],
                "sampling": {"engine": engine, "threads": 1},
                "replay": {"slack_trajectories": 10**9},
            }
        )
        pipes, processes = [], []
        for number in (0, 1):
            own, other = context.Pipe()
            process = context.Process(
                target=act, args=(other, config, server.url, number, core(number)), daemon=True
            )
            process.start()
            pipes.append(own)
            processes.append(process)
        for pipe in pipes:
            assert _received(pipe) == "ready"
        _sample(pipes, 1.0)
        ratios, alone, together = [], [], []
        for _ in range(pairs):
            alone.append(sum(_sample([pipe], seconds)[0] for pipe in pipes))
            together.append(sum(_sample(pipes, seconds)))
            ratios.append(together[-1] / alone[-1])
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(30.0)
    one, two = float(np.median(alone)) / 2, float(np.median(together))
    return Row(
        "samples/s of two actors ÷ twice one, real", ratios, TARGET, two, 2 * one, "samples/s"
    )


def _sample(pipes: list[Connection], seconds: float) -> list[float]:
    """Samples a second of each, all of them at work at once."""
    for pipe in pipes:
        pipe.send(seconds)
    return [float(_received(pipe)) for pipe in pipes]


def _received(pipe: Connection) -> Any:
    if not pipe.poll(START_SECONDS):
        raise RuntimeError("an actor says nothing")
    return pipe.recv()


def crowds(actors: tuple[int, ...], faster: tuple[float, ...], seconds: float) -> list[CrowdRun]:
    """Ever more actors, then the most of them ever faster until they are not kept up with."""
    runs = []
    wanted = [(count, GROUP_SECONDS) for count in actors]
    wanted += [(actors[-1], group_seconds) for group_seconds in faster]
    for count, group_seconds in wanted:
        with TemporaryDirectory(prefix="crowd-") as parent:
            runs.append(crowd_run(Path(parent) / "redis", count, group_seconds, seconds))
        if group_seconds != GROUP_SECONDS and not TARGET.met(runs[-1].efficiency):
            break
    return runs


def crowd_table(runs: list[CrowdRun]) -> str:
    """As Markdown."""
    lines = [
        "| actors | offered/s | stored/s | drawn/s | insert, p50 and p99 | adapter lag, p50 and p99 | told to wait "
        "| CPU: Redis, intake, simulator |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.actors:,} | {run.offered:,.1f} | {run.stored:,.1f} | {run.drawn:,.1f} "
        f"| {run.insert_p50_milliseconds:.2g} and {run.insert_p99_milliseconds:.2g} ms "
        f"| {run.adapter_lag_p50:.2g} and {run.adapter_lag_p99:.2g} s | {run.told_to_wait:.0%} "
        f"| {run.redis_cpu:.0%}, {run.intake_cpu:.0%}, {run.simulator_cpu:.0%} |"
        for run in runs
    ]
    return "\n".join(lines)


def measure(quick: bool) -> Report:
    """See the module."""
    if quick:
        rows = [real_actors("pocket", "transformers", 1, 0.5)]
        runs = crowds((1, 5), (), 2.0)
    else:
        rows = [real_actors("pocket", "vllm", REAL_PAIRS, REAL_SECONDS)]
        runs = crowds(ACTORS, FASTER, SECONDS)
    print(crowd_table(runs))
    for run in runs:
        name = f"stored ÷ offered, {run.actors:,} actors, {run.offered:,.0f} a second"
        target = TARGET if run.group_seconds == GROUP_SECONDS else None
        rows.append(Row(name, [run.efficiency], target, run.stored, run.offered, "trajectories/s"))
    return Report(rows, {"crowds": [asdict(run) for run in runs]})


if __name__ == "__main__":
    main("scaling", __doc__ or "", measure)
