"""How soon a published adapter is sampled from, and how long sequences in flight wait for it.

    python -m benchmarks.adapter_publish

A real `RolloutWorker` keeps a vLLM engine full on one core. In a process on the other one a policy with an adapter of
rank 16 on all projections takes an optimiser step now and then and publishes to Redis as the learner does. First
token: from the end of that step to the end of the engine step that made the first token under the new version.
Gap: the time between two engine steps with the adapter's loading between them ÷ the median of those without one in
which as many groups join, that is, the longest wait for a token in steps. A step that reads the prompts of new groups
takes several times as long as others whether there is a new adapter or not.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import psutil
import torch

from actors.rollout import RolloutWorker
from benchmarks.measure import Report, Row, Target, main
from benchmarks.training_side import ORIGINAL_CORES, core
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.problems import build_problems
from posteriori.seams import Engine, SampledGroup, SampleRequest
from replay.buffers import open_buffer
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.server import EmbeddedServer

RANK = 16
PUBLICATIONS, QUICK_PUBLICATIONS = 25, 3
PAUSE_SECONDS = (0.8, 1.6)
"""Between publications: none falls in step with the worker's polls."""
COMPARED = 20
"""Engine steps that a gap is measured by: those nearest to it in the number of groups that join."""
PROBLEM = {
    "name": "z",
    "kind": "infilling",
    "prompts": [{"x": f"{name} found a", "y": " wallet."} for name in ("Mia", "Tom", "Anna")],
    "max_tokens": 12,
}


class Watched:
    """An engine that notes when its steps end and which version's requests take part in them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.ends: list[float] = []
        self.loads: list[int] = []
        """Number of the step that followed each loading."""
        self.first_step: dict[int, int] = {}
        """Number of the first step with a request of each version."""
        self.joined: list[int] = []
        """Groups that take part for the first time in each step."""
        self._joining: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_adapter(self, version: int, directory: Path) -> None:
        """See ``Engine``."""
        self._engine.add_adapter(version, directory)
        self.loads.append(len(self.ends))

    def submit(self, request: SampleRequest) -> None:
        """See ``Engine``."""
        self._engine.submit(request)
        self._joining.append(request.adapter_version)

    def step(self) -> list[SampledGroup]:
        """See ``Engine``."""
        groups = self._engine.step()
        for version in self._joining:
            self.first_step.setdefault(version, len(self.ends))
        self.joined.append(len(self._joining))
        self._joining.clear()
        self.ends.append(time.monotonic())
        return groups


def publish(pipe: Connection, config: RunConfig, url: str, count: int, cores: list[int]) -> None:
    """In a process of its own: optimiser steps, each followed by a publication; sends when each step ended."""
    from learner.learner import ADAPTERS_KEPT
    from posteriori.policy import Policy

    psutil.Process().cpu_affinity(cores)
    torch.set_num_threads(1)
    policy = Policy(LanguageModel.load(config.model), config.learner)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    client = connect(url)
    adapters, buffer = RedisAdapters(client, config.run), open_buffer(client, config)
    random = np.random.default_rng(0)
    pipe.send("ready")
    pipe.recv()
    for version in range(1, count + 1):
        time.sleep(random.uniform(*PAUSE_SECONDS))
        for parameter in policy.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()
        ended = time.monotonic()  # one clock for all processes of a machine
        adapters.publish(version, policy.adapter_files())
        adapters.prune(ADAPTERS_KEPT)
        buffer.set_learner_version(version)
        pipe.send((version, ended))
    pipe.send(None)


def observe(engine: Engine, model: str, kind: str, problem: dict[str, Any], count: int) -> Report:
    """Publish ``count`` times to a worker on ``engine``.

    Args:
        engine: idle, without adapters.
        model: that it serves.
        kind: ``vllm`` or ``transformers``.
        problem: of a run file.
        count: publications.
    """
    watched = Watched(engine)
    stepped: dict[int, float] = {}
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory(prefix="publish-") as parent,
        EmbeddedServer(Path(parent) / "redis", 2**26) as server,
    ):
        psutil.Process(server.pid).cpu_affinity(core(1))
        config = parse(
            {
                "run": "publish",
                "model": model,
                "output_directory": parent,
                "problems": [problem],
                "sampling": {"engine": kind, "threads": 1},
                "replay": {"slack_trajectories": 10**9},
                "learner": {"lora_rank": RANK},
            }
        )
        client = connect(server.url)
        own, other = context.Pipe()
        publisher = context.Process(
            target=publish, args=(other, config, server.url, count, core(1)), daemon=True
        )
        publisher.start()
        assert own.recv() == "ready"
        worker = RolloutWorker(
            "actor-0",
            cast(Engine, watched),
            open_buffer(client, config),
            RedisAdapters(client, config.run),
            build_problems(config, LanguageModel.load(model)),
            config.sampling,
            seed=0,
            adapter_directory=Path(parent),
        )
        own.send("go")
        while len(stepped) < count or max(watched.first_step) < count:
            worker.turn()
            with suppress(EOFError):
                if own.poll() and (said := own.recv()) is not None:
                    stepped[said[0]] = said[1]
        worker.run(lambda: True)
        publisher.join()
    # A version may be overtaken by the next one before the worker looks.
    taken = sorted(set(stepped) & set(watched.first_step))
    first_token = [watched.ends[watched.first_step[v]] - stepped[v] for v in taken]
    gaps = _gaps(watched)
    for version in engine.adapter_versions:
        engine.remove_adapter(version)
    step = float(np.median(np.diff(watched.ends)))
    rows = [
        Row("optimiser step to first token, s, median", first_token, Target(1.0), unit="s"),
        Row("optimiser step to first token, s, longest", [max(first_token)], Target(1.0), unit="s"),
        Row(
            "the same in engine steps, median",
            (np.array(first_token) / step).tolist(),
            unit="steps",
        ),
        Row("gap in engine steps, median", gaps, Target(2.0), unit="steps"),
        Row("gap in engine steps, longest", [max(gaps)], Target(2.0), unit="steps"),
    ]
    settings = {
        "engine": kind,
        "publications": count,
        "taken up": len(taken),
        "engine step seconds": step,
    }
    return Report(rows, settings)


def _gaps(watched: Watched) -> list[float]:
    """Of each loading: the time between the steps around it ÷ the median one in which as many groups join."""
    times = np.diff(watched.ends)  # times[k] is from the end of step k to that of step k + 1
    joined = np.array(watched.joined[1:])
    loads = sorted({number - 1 for number in watched.loads if 0 < number < len(watched.ends)})
    others = np.setdiff1d(np.arange(len(times)), loads)
    gaps = []
    for load in loads:
        alike = others[np.argsort(np.abs(joined[others] - joined[load]), kind="stable")[:COMPARED]]
        if len(alike):
            gaps.append(float(times[load] / np.median(times[alike])))
    return gaps


def measure(quick: bool) -> Report:
    """See the module."""
    from actors.vllm_engine import VllmEngine
    from posteriori.lm import model_path

    psutil.Process().cpu_affinity(core(0))
    torch.set_num_threads(1)
    engine = VllmEngine(model_path("pocket"), lora_rank=RANK, max_model_tokens=64)
    psutil.Process().cpu_affinity(core(0))  # vLLM may have bound the process otherwise
    try:
        count = QUICK_PUBLICATIONS if quick else PUBLICATIONS
        return observe(engine, "pocket", "vllm", PROBLEM, count)
    finally:
        engine.close()
        psutil.Process().cpu_affinity(ORIGINAL_CORES)


if __name__ == "__main__":
    main("adapter_publish", __doc__ or "", measure)
