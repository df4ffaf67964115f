"""Samples a second of two real actors, each with a core of its own, ÷ the sum of what each of them does alone.

    python -m benchmarks.real_actors

Two processes, each a vLLM engine and a `RolloutWorker` pinned to a core; one Redis, which shares the two cores with
them here and has its own in a cluster. Alone and together in turn. How many more one Redis carries, with simulated
actors: `benchmarks.scaling`.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.measure import Report, Row, Target, main
from benchmarks.training_side import core
from posteriori.config import RunConfig, parse
from replay.server import EmbeddedServer

TARGET = Target(0.9, "at least")
PAIRS, SECONDS = 7, 4.0
START_SECONDS = 600.0
END_SECONDS = 30.0
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


def compare(model: str, engine: str, pairs: int, seconds: float) -> Row:
    """One and two actors, in turn.

    Args:
        model: that both sample.
        engine: ``vllm`` or ``transformers``.
        pairs: turns of each kind.
        seconds: of a turn.
    """
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory(prefix="real-actors-") as parent,
        EmbeddedServer(Path(parent) / "redis", 2**26) as server,
    ):
        config = parse(
            {
                "run": "real-actors",
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
        _sample(pipes, seconds)  # both have warmed up
        ratios, alone, together = [], [], []
        for _ in range(pairs):
            alone.append(sum(_sample([pipe], seconds)[0] for pipe in pipes))
            together.append(sum(_sample(pipes, seconds)))
            ratios.append(together[-1] / alone[-1])
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(END_SECONDS)
    one, two = float(np.median(alone)) / 2, float(np.median(together))
    return Row("samples/s of two actors ÷ twice one", ratios, TARGET, two, 2 * one, "samples/s")


def _sample(pipes: list[Connection], seconds: float) -> list[float]:
    """Samples a second of each, all of them at work at once."""
    for pipe in pipes:
        pipe.send(seconds)
    return [float(_received(pipe)) for pipe in pipes]


def _received(pipe: Connection) -> Any:
    if not pipe.poll(START_SECONDS):
        raise RuntimeError("an actor says nothing")
    return pipe.recv()


def measure(quick: bool) -> Report:
    """See the module."""
    row = compare("pocket", *(("transformers", 1, 0.5) if quick else ("vllm", PAIRS, SECONDS)))
    return Report([row], {"seconds a turn": SECONDS})


if __name__ == "__main__":
    main("real_actors", __doc__ or "", measure)
