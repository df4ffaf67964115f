"""A rollout actor while training ÷ its engine and its scorer alone: tokens a second, side by side.

    python -m benchmarks.sampler_efficiency

One vLLM engine on one core. Training: a real `RolloutWorker` samples, scores, stores in Redis and takes up the
versions that a real learner, on the other core, publishes at every second step. Alone: the learner is paused; the
same engine is kept full with the same requests (X's, behaviours, newest adapter) and each distinct Z of a group is
scored, at once, by the same reward. They take turns in one process. The worker does not score a Z that it has
scored before, so a posterior of few strings may come out above 1; the one of long Z's shows the machinery alone.
Tokens a CPU second of the process leave out waits for Redis, and what else a busy machine does.

On a machine with a CUDA GPU engine, scorer and learner share it, with a Llama of 1.1 billion random parameters
in bfloat16.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from actors.exploration import Exploration, PlannedGroup
from actors.rollout import RolloutWorker
from benchmarks.measure import Report, Row, Target, main
from benchmarks.models import LARGE, named
from benchmarks.training_side import ORIGINAL_CORES, Pausable, core, learning
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problems
from posteriori.rewards import checked_log_reward
from posteriori.seams import Engine
from replay.buffers import open_buffer
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from replay.server import EmbeddedServer

RANK = 16
TARGET = Target(0.95, "at least")
PAIRS, SECONDS = 6, 4.0
QUICK_PAIRS, QUICK_SECONDS = 1, 1.0
GPU_MEMORY_SHARE = 0.3
"""Of the engine; scorer and learner hold the model twice more."""
STORIES = [
    {"x": f"{name} found a", "y": ". The wallet was full of money."}
    for name in ("Mia", "Tom", "Anna", "Ben")
]
WORKLOADS: dict[str, dict[str, Any]] = {
    "5 tokens, few strings": {"kind": "infilling", "prompts": STORIES, "max_tokens": 5},
    "32 tokens": {
        "kind": "tempered",
        "temperature": 0.8,
        "prompts": [{"x": story["x"]} for story in STORIES],
        "max_tokens": 32,
        "min_tokens": 24,
    },
}


def precision(device: str) -> str:
    """Of all models on a device."""
    return "float32" if device == "cpu" else "bfloat16"


def run_config(
    problem: dict[str, Any],
    number: int,
    directory: Path,
    model: str,
    engine: str,
    rank: int,
    device: str = "cpu",
) -> RunConfig:
    """A run of one workload whose two sides never wait for each other."""
    return parse(
        {
            "run": f"efficiency-{number}",
            "model": model,
            "dtype": precision(device),
            "output_directory": str(directory),
            "problems": [{"name": "z", **problem}],
            "sampling": {"engine": engine, "threads": 1},
            "replay": {"slack_trajectories": 10**9},
            "learner": {
                "steps": 10**6,
                "publish_every_steps": 2,
                "threads": 1,
                "device": device,
                "lora_rank": rank,
            },
            "oracle_max_strings": 1,
        }
    )


@dataclass
class Turn:
    """What one side did in its turn."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        return self.tokens / self.cpu_seconds


class Alone:
    """The engine and the scorer, and nothing between."""

    def __init__(self, engine: Engine, problems: list[Problem], config: RunConfig) -> None:
        self._engine, self._config = engine, config
        self._exploration = Exploration("alone", problems, config.sampling, seed=1)

    def take(self, seconds: float, version: int) -> Turn:
        """Keep the engine full for so long, under one adapter."""
        engine, turn = self._engine, Turn()
        in_flight: dict[str, PlannedGroup] = {}
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds or not turn.tokens:
            while len(in_flight) < self._config.sampling.groups_in_flight:
                planned = self._exploration.next(version)
                in_flight[planned.request.id] = planned
                engine.submit(planned.request)
            for group in engine.step():
                planned = in_flight.pop(group.request.id)
                problem, moves = planned.problem, group.request.moves
                distinct = [list(z) for z in dict.fromkeys(tuple(s.tokens) for s in group.samples)]
                checked_log_reward(problem.reward, problem.name, planned.prompt, moves, distinct)
                turn.tokens += sum(len(sample.tokens) for sample in group.samples)
        turn.seconds, turn.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        for request_id in in_flight:
            engine.cancel(request_id)
        return turn


def after(seconds: float, worker: RolloutWorker) -> Callable[[], bool]:
    """Says that a turn is over: so much time is, and something was finished."""
    end, tokens = time.perf_counter() + seconds, worker.counts.tokens
    return lambda: time.perf_counter() >= end and worker.counts.tokens > tokens


def take(worker: RolloutWorker, until: Callable[[], bool]) -> Turn:
    """The worker's turn."""
    tokens, began, cpu = worker.counts.tokens, time.perf_counter(), time.process_time()
    worker.run(until)
    return Turn(
        worker.counts.tokens - tokens, time.perf_counter() - began, time.process_time() - cpu
    )


def compare(
    engine: Engine,
    lm: LanguageModel,
    config: RunConfig,
    url: str,
    scratch: Path,
    pairs: int,
    seconds: float,
) -> tuple[list[float], list[float], dict[str, Any]]:
    """Ratios of pairs, by the clock and by CPU time, and what the worker says of itself."""
    directory = RunDirectory(config.directory)
    (scratch / "adapters").mkdir(parents=True)
    directory.create(config, lm)
    problems = build_problems(config, lm)
    client = connect(url)
    registry = RunRegistry(client, config.run)
    registry.begin()
    worker = RolloutWorker(
        "actor-0",
        engine,
        open_buffer(client, config),
        RedisAdapters(client, config.run),
        problems,
        config.sampling,
        seed=0,
        adapter_directory=scratch / "adapters",
        heartbeat=lambda fields: registry.beat("actor-0", {"state": "sampling", **fields}),
    )
    alone = Alone(engine, problems, config)
    with learning(config, url, directory.path) as learner:
        take(worker, lambda: int(worker.status()["version"]) >= 3)  # both have warmed up
        ratios, cpu_ratios, rates = [], [], []
        loaded = worker.counts.adapters_loaded
        for pair in range(pairs):
            turns = {}
            for side in ("training", "alone") if pair % 2 == 0 else ("alone", "training"):
                if side == "training":
                    turns[side] = take(worker, after(seconds, worker))
                else:
                    turns[side] = take_alone(alone, learner, seconds, worker)
            ratios.append(turns["training"].rate / turns["alone"].rate)
            cpu_ratios.append(turns["training"].cpu_rate / turns["alone"].cpu_rate)
            rates.append([turns["training"].rate, turns["alone"].rate])
        loaded = worker.counts.adapters_loaded - loaded
    status = worker.status()
    spent = {key: status[key] for key in status if str(key).endswith("_seconds")}
    training, by_itself = np.median(rates, axis=0).tolist()
    facts = {
        "tokens/s training": training,
        "tokens/s alone": by_itself,
        "adapters taken up": loaded,
        "scores found": status["scores_found"],
        "scores computed": status["scores_computed"],
        **spent,
    }
    for version in engine.adapter_versions:
        engine.remove_adapter(version)
    return ratios, cpu_ratios, facts


def take_alone(alone: Alone, learner: Pausable, seconds: float, worker: RolloutWorker) -> Turn:
    """The engine's turn, the learner paused."""
    with learner.paused():
        return alone.take(seconds, int(worker.status()["version"]))


def measure_with(
    engine: Engine,
    model: str,
    kind: str,
    workloads: dict[str, dict[str, Any]],
    pairs: int,
    seconds: float,
    rank: int = RANK,
    device: str = "cpu",
) -> Report:
    """All workloads on an engine that is there.

    Args:
        engine: idle, without adapters, of ``rank`` at least.
        model: that it serves.
        kind: ``vllm`` or ``transformers``.
        workloads: problems of a run file, by what the table calls them.
        pairs: turns of each side.
        seconds: of a turn.
        device: of scorer and learner; not on the CPU they are in bfloat16.
    """
    lm = LanguageModel.load(model, precision(device), device)
    rows, settings = [], {}
    with (
        TemporaryDirectory(prefix="efficiency-") as parent,
        EmbeddedServer(Path(parent) / "redis", 2**28) as server,
    ):
        psutil.Process(server.pid).cpu_affinity(core(1))
        for number, (name, problem) in enumerate(workloads.items()):
            directory = Path(parent) / f"{number}"
            config = run_config(problem, number, directory, model, kind, rank, device)
            ratios, cpu_ratios, facts = compare(
                engine, lm, config, server.url, directory, pairs, seconds
            )
            training, alone = facts["tokens/s training"], facts["tokens/s alone"]
            title = f"tokens/s while training ÷ engine and scorer alone, {name}"
            rows.append(Row(title, ratios, TARGET, training, alone, "tokens/s", cpu_ratios))
            settings[name] = facts
    return Report(rows, {"seconds a turn": seconds, "engine": kind, **settings})


def measure(quick: bool) -> Report:
    """See the module."""
    from actors.vllm_engine import VllmEngine
    from posteriori.lm import model_path

    pairs, seconds = (QUICK_PAIRS, QUICK_SECONDS) if quick else (PAIRS, SECONDS)
    if torch.cuda.is_available() and not quick:
        return on_gpu(pairs, seconds)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(core(0)[0])
    psutil.Process().cpu_affinity(core(0))
    torch.set_num_threads(1)
    engine = VllmEngine(model_path("pocket"), lora_rank=RANK, max_model_tokens=96)
    psutil.Process().cpu_affinity(core(0))  # vLLM may have bound the process otherwise
    try:
        return measure_with(engine, "pocket", "vllm", WORKLOADS, pairs, seconds)
    finally:
        engine.close()
        psutil.Process().cpu_affinity(ORIGINAL_CORES)


def on_gpu(pairs: int, seconds: float) -> Report:
    """Engine, scorer and learner of a larger model on one GPU; the cores stay as they are."""
    from actors.vllm_engine import VllmEngine

    with TemporaryDirectory(prefix="efficiency-model-") as folder:
        lm = named(LARGE)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        del lm
        torch.cuda.empty_cache()
        engine = VllmEngine(
            folder,
            lora_rank=RANK,
            max_model_tokens=96,
            dtype=precision("cuda"),
            gpu_memory_utilization=GPU_MEMORY_SHARE,
        )
        try:
            return measure_with(engine, folder, "vllm", WORKLOADS, pairs, seconds, device="cuda")
        finally:
            engine.close()


if __name__ == "__main__":
    main("sampler_efficiency", __doc__ or "", measure)
