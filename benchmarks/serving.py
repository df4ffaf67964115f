"""What the service costs over the bare engine: `/v1/posterior/samples` ÷ vLLM plus the same scorer, side by side.

    python -m benchmarks.serving                        # vLLM, pocket with a random adapter, 1, 8 and 64 clients
    python -m benchmarks.serving --engine transformers --clients 1 8 --seconds 3

Bare: clients without HTTP hand groups of samples to an engine that is stepped without a pause, and a thread scores
what is finished; each client asks again when its samples are scored. Served: the same clients over HTTP against
`posteriori serve`. Same adapter, X, samples a request and torch threads. The two take turns, in rounds, so that a
busy machine is busy for both; a ratio is of the sums over rounds, a latency of all requests. Where the machine is
busy nonetheless, samples a CPU second, of the process that holds the engine, say more than samples a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from actors.self_test import random_adapter
from api.service import start_engine
from api.settings import ServeSettings
from benchmarks.load import PROBLEM, serving
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import parse
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Engine, SampleRequest

OUT = Path("docs/results/serving.json")
CLIENTS = (1, 8, 64)
SAMPLES = 16
ROUNDS = 3
RANK = 16
SCALE = 0.1
"""Of the random adapter's entries: another sampler than the base LM, and still one that stops."""


@dataclass
class Measured:
    """Requests of one kind: latencies, and the seconds they took together, of the clock and of CPU."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def row(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.latencies, [50, 99])
        return {
            "samples/s": SAMPLES * len(self.latencies) / self.seconds,
            "samples/CPU s": SAMPLES * len(self.latencies) / self.cpu_seconds,
            "p50 ms": float(p50) * 1e3,
            "p99 ms": float(p99) * 1e3,
        }


class Bare:
    """The engine and the scorer, and nothing between."""

    def __init__(self, engine: Engine, problem: Problem, adapter: Path) -> None:
        self._engine, self._problem = engine, problem
        self._seeds = itertools.count(1)
        self._scorer = ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(1))
        engine.add_adapter(1, adapter)

    def run(self, clients: int, seconds: float, found: Measured) -> None:
        """So many clients for so long."""
        began, cpu = time.monotonic(), time.process_time()
        asked = {self._submit(): time.monotonic() for _ in range(clients)}
        scoring: dict[Future[None], float] = {}
        while asked or scoring:
            for group in self._engine.step():
                future = self._scorer.submit(self._score, group.samples, group.request)
                scoring[future] = asked.pop(group.request.id)
            if not asked and scoring:
                next(iter(scoring)).result()  # nothing to step: as the service, wait for the scorer
            for future in [future for future in scoring if future.done()]:
                future.result()
                found.latencies.append(time.monotonic() - scoring.pop(future))
                if time.monotonic() - began < seconds:
                    asked[self._submit()] = time.monotonic()
        found.seconds += time.monotonic() - began
        found.cpu_seconds += time.process_time() - cpu

    def _submit(self) -> str:
        seed = next(self._seeds)
        prompt = self._problem.prompts[seed % len(self._problem.prompts)]
        ids, moves = self._problem.policy_ids(prompt), self._problem.moves(prompt)
        request = SampleRequest(str(seed), ids, moves, SAMPLES, adapter_version=1, seed=seed)
        self._engine.submit(request)
        return request.id

    def _score(self, samples: list[Any], request: SampleRequest) -> None:
        prompt = self._problem.prompts[int(request.id) % len(self._problem.prompts)]
        wanted = [list(z) for z in dict.fromkeys(tuple(sample.tokens) for sample in samples)]
        problem = self._problem
        checked_log_reward(problem.reward, problem.name, prompt, request.moves, wanted)


async def serve_load(
    url: str, pid: int, clients: int, seconds: float, found: Measured, start: int
) -> None:
    """So many clients over HTTP for so long; seeds from ``start``."""
    process = psutil.Process(pid)
    cpu = sum(process.cpu_times()[:2])
    seeds = itertools.count(start)
    limits = httpx.Limits(max_connections=clients)
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=300.0, limits=limits) as http:

        async def client() -> None:
            while time.monotonic() - began < seconds:
                seed = next(seeds)
                prompt = str(seed % len(PROBLEM["prompts"]))
                asked = {"run": "load", "prompt": prompt, "n": SAMPLES, "seed": seed, "version": 1}
                sent = time.monotonic()
                answer = await http.post("/v1/posterior/samples", json=asked)
                answer.raise_for_status()
                found.latencies.append(time.monotonic() - sent)

        await asyncio.gather(*(client() for _ in range(clients)))
    found.seconds += time.monotonic() - began
    found.cpu_seconds += sum(process.cpu_times()[:2]) - cpu


def prepare(model: str, folder: Path) -> tuple[Path, Problem]:
    """A run ``load`` with one adapter, as a training leaves it; the adapter and the problem."""
    lm = LanguageModel.load(model)
    config = parse(
        {
            "run": "load",
            "model": model,
            "output_directory": str(folder),
            "problems": [PROBLEM],
            "learner": {"lora_rank": RANK},
        }
    )
    directory = RunDirectory(config.directory)
    directory.create(config, lm)
    adapted = LanguageModel.load(model).model
    random_adapter(adapted, directory.adapter, rank=RANK, scale=SCALE)
    return directory.adapter, build_problem(config.problems[0], lm)


def measure(
    model: str, engine: str, clients: list[int], seconds: float, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """One row for each number of clients: bare, served, and the ratios served ÷ bare."""
    settings = ServeSettings.model_validate({"model": model, "engine": engine, "lora_rank": RANK})
    rows: dict[str, dict[str, float]] = {}
    folder = Path(tempfile.mkdtemp(prefix="posteriori-serving-"))
    try:
        adapter, problem = prepare(model, folder)
        bare = Bare(start_engine(settings), problem, adapter)
        options = ["--engine", engine, "--model", model, "--lora-rank", str(RANK)]
        with serving(*options, runs=folder) as (url, pid):
            warm = Measured()
            bare.run(1, 1.0, warm)
            asyncio.run(serve_load(url, pid, 1, 1.0, warm, 1))
            for number in clients:
                alone, served = Measured(), Measured()
                for k in range(rounds):
                    bare.run(number, seconds, alone)
                    start = 1_000_000 * (k + 1)
                    asyncio.run(serve_load(url, pid, number, seconds, served, start))
                ratios = {
                    f"{name}, served ÷ bare": value / alone.row()[name]
                    for name, value in served.row().items()
                }
                rows[str(number)] = {
                    **{f"{name}, bare": value for name, value in alone.row().items()},
                    **{f"{name}, served": value for name, value in served.row().items()},
                    **ratios,
                }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """As Markdown, a column for each number of clients."""
    names = list(next(iter(rows.values())))
    head = ["| | " + " | ".join(f"{number} clients" for number in rows) + " |"]
    head.append("|---" * (len(rows) + 1) + "|")
    body = [
        "| " + " | ".join([n, *(f"{row[n]:.3g}" for row in rows.values())]) + " |" for n in names
    ]
    return "\n".join(head + body)


def main() -> None:
    """Measure, write JSON and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--quick", action="store_true", help="one client for a second; says nothing, is not kept"
    )
    arguments = parser.parse_args()
    clients, seconds = ([1], 1.0) if arguments.quick else (arguments.clients, arguments.seconds)
    torch.set_num_threads(1)
    rows = measure(arguments.model, arguments.engine, clients, seconds)
    how = {"engine": arguments.engine, "model": arguments.model, "samples a request": SAMPLES}
    if not arguments.quick:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({**how, "clients": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
