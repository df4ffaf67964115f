"""Many clients at once against one service: is an answer lost or mixed up, does memory hold, how long does it take?

    make load                                           # 200 clients, 60 s, vLLM, the model that ships
    python -m benchmarks.load --engine transformers --clients 50 --seconds 20
    python -m benchmarks.load --url http://127.0.0.1:8000 # a service that runs already, without memory

Every request has its own X and seed out of a list whose answers were drawn before, one at a time. An answer
belongs to its request if it says the same X and seed and log q of its samples under X is what it says, computed
here by transformers; where the samples are others than before, that is counted too. 429 is waited out as
Retry-After says, and counted apart: it is neither an answer nor lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from posteriori.client import Client
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.messages import SamplesResponse
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import build_problem
from posteriori.seams import Prompt

OUT = Path("docs/results/load.json")
NAMES = ("Mia", "Ben", "Ana", "Tom", "Lea", "Max", "Eva", "Sam")
PROBLEM: dict[str, Any] = {
    "name": "found",
    "kind": "infilling",
    "prompts": [{"x": f"{name} found a", "y": ". The wallet was full of money."} for name in NAMES],
    "max_tokens": 5,
}
SEEDS = 4
"""Of each X; the list of requests is as long as X's times seeds."""
SAMPLES = 4
SAME_NATS = 2e-3
"""Engine and transformers agree on log q of a short Z within this, in float32."""
MEMORY_SECONDS = 0.5
COMMAND = (sys.executable, "-m", "posteriori.cli", "serve")
IN_FLIGHT = 128
"""Fewer than the clients, so that some are told to come back."""


@dataclass(frozen=True)
class Asked:
    """A request of the list and its answer when nobody else was asking."""

    x: str
    y: str
    seed: int
    tokens: tuple[tuple[int, ...], ...] = ()


@dataclass
class Tally:
    """What became of the requests. ``seconds`` are latencies of answers; memory in MiB over time."""

    sent: int = 0
    answered: int = 0
    told_to_wait: int = 0
    mixed_up: int = 0
    other_samples: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


def requests(problem: dict[str, Any]) -> list[Asked]:
    """All X's of a problem under several seeds."""
    prompts = problem["prompts"]
    return [Asked(p["x"], p.get("y", ""), seed) for p in prompts for seed in range(SEEDS)]


def body(problem: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """As the service takes it."""
    fields = {"x": asked.x} | ({"y": asked.y} if asked.y else {})
    return {"problem": problem, "fields": fields, "seed": asked.seed, "n": SAMPLES}


def answers_alone(url: str, problem: dict[str, Any]) -> list[Asked]:
    """The list with its answers, drawn one at a time."""
    declared = ProblemConfig(**problem)
    with Client(url, retry_seconds=300.0) as client:
        found = []
        for asked in requests(problem):
            fields = body(problem, asked)["fields"]
            answer = client.samples(problem=declared, fields=fields, seed=asked.seed, n=SAMPLES)
            tokens = tuple(tuple(sample.tokens) for sample in answer.samples)
            found.append(Asked(asked.x, asked.y, asked.seed, tokens))
    return found


class Checker:
    """Do samples belong to X? By log q, of each distinct Z once."""

    def __init__(self, lm: LanguageModel, problem: dict[str, Any]) -> None:
        self._lm = lm
        self._problem = build_problem(ProblemConfig(**problem), lm)
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}

    def log_q(self, asked: Asked, tokens: tuple[int, ...]) -> float:
        """log q(Z | X) by transformers."""
        key = (asked.x, tokens)
        if key not in self._known:
            prompt = Prompt("asked", {"x": asked.x, "y": asked.y})
            ids, moves = self._problem.policy_ids(prompt), self._problem.moves(prompt)
            self._known[key] = float(sequence_log_q(self._lm, ids, moves, [list(tokens)])[0])
        return self._known[key]

    def belongs(self, asked: Asked, answer: SamplesResponse) -> bool:
        """Is it the answer to this request?"""
        if (answer.seed, answer.fields.get("x"), len(answer.samples)) != (
            asked.seed,
            asked.x,
            SAMPLES,
        ):
            return False
        gaps = [abs(s.log_q - self.log_q(asked, tuple(s.tokens))) for s in answer.samples]
        return max(gaps) < SAME_NATS


async def _client(
    http: httpx.AsyncClient,
    problem: dict[str, Any],
    listed: list[Asked],
    until_seconds: float,
    seed: int,
    tally: Tally,
    answers: list[tuple[Asked, bytes]],
) -> None:
    """One client: asks, waits where it is told to, asks again."""
    choose = random.Random(seed)
    while time.monotonic() < until_seconds:
        asked = choose.choice(listed)
        began = time.monotonic()
        tally.sent += 1
        try:
            response = await http.post("/v1/posterior/samples", json=body(problem, asked))
        except httpx.TransportError as cause:
            tally.lost.append(f"{type(cause).__name__}: {cause}")
            continue
        if response.status_code == 429:
            tally.told_to_wait += 1
            await asyncio.sleep(float(response.headers["Retry-After"]) * (1 + choose.random()))
        elif response.status_code != 200:
            tally.lost.append(f"{response.status_code}: {response.text[:200]}")
        else:
            tally.seconds.append(time.monotonic() - began)
            answers.append((asked, response.content))


async def _watch(process: psutil.Process | None, tally: Tally) -> None:
    began = time.monotonic()
    while process is not None:
        tally.memory.append((time.monotonic() - began, process.memory_info().rss / 2**20))
        await asyncio.sleep(MEMORY_SECONDS)


async def _all(
    url: str,
    problem: dict[str, Any],
    listed: list[Asked],
    clients: int,
    seconds: float,
    process: psutil.Process | None,
) -> tuple[Tally, list[tuple[Asked, bytes]]]:
    tally, answers = Tally(), list[tuple[Asked, bytes]]()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300.0, limits=limits) as http:
        watching = asyncio.create_task(_watch(process, tally))
        end = time.monotonic() + seconds
        await asyncio.gather(
            *(_client(http, problem, listed, end, k, tally, answers) for k in range(clients))
        )
        watching.cancel()
    return tally, answers


def measure(
    url: str,
    lm: LanguageModel,
    problem: dict[str, Any] = PROBLEM,
    *,
    clients: int,
    seconds: float,
    pid: int | None = None,
) -> Tally:
    """Load the service at ``url``.

    Args:
        url: of the service.
        lm: its base LM, to check answers with.
        problem: declared in every request; its prompts are the X's.
        clients: at a time.
        seconds: for which they ask; answers that are out then are waited for.
        pid: of the service, whose memory is watched.
    """
    listed = answers_alone(url, problem)
    process = psutil.Process(pid) if pid is not None else None
    tally, answers = asyncio.run(_all(url, problem, listed, clients, seconds, process))
    checker = Checker(lm, problem)
    for asked, content in answers:
        tally.answered += 1
        answer = SamplesResponse.model_validate_json(content)
        if not checker.belongs(asked, answer):
            tally.mixed_up += 1
        elif tuple(tuple(sample.tokens) for sample in answer.samples) != asked.tokens:
            tally.other_samples += 1
    return tally


def summary(tally: Tally, seconds: float) -> dict[str, float | int | None]:
    """Figures of a load; latencies in seconds, memory in MiB, its slope over the second half."""
    p50, p90, p99 = np.percentile(tally.seconds, [50, 90, 99]) if tally.seconds else [np.nan] * 3
    half = np.array(tally.memory[len(tally.memory) // 2 :])
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) * 60 if len(half) > 2 else None
    return {
        "sent": tally.sent,
        "answered": tally.answered,
        "told to wait (429)": tally.told_to_wait,
        "lost": len(tally.lost),
        "mixed up": tally.mixed_up,
        "other samples under the same seed": tally.other_samples,
        "answers a second": tally.answered / seconds,
        "p50 seconds": float(p50),
        "p90 seconds": float(p90),
        "p99 seconds": float(p99),
        "memory at the start, MiB": tally.memory[0][1] if tally.memory else None,
        "memory at the end, MiB": tally.memory[-1][1] if tally.memory else None,
        "memory, MiB a minute": slope,
    }


@contextmanager
def serving(*options: str, runs: Path | None = None) -> Iterator[tuple[str, int]]:
    """URL and process id of a `posteriori serve`, of the folder ``runs`` or of none, that ends with the block."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--runs", str(runs or Path(folder) / "runs"), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
            _wait(lambda: httpx.get(f"{found.group()}/ready").status_code == 200)
            yield found.group(), process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()
                process.stdout.close()


def _wait(ready: Callable[[], bool], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"The service was not ready within {seconds:g} s.")
        time.sleep(0.5)


def main() -> None:
    """Load a service and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--most-in-flight", type=int, default=IN_FLIGHT)
    parser.add_argument("--url", help="of a service that runs already")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lm = LanguageModel.load(arguments.model)
    load = {"clients": arguments.clients, "seconds": arguments.seconds}
    if arguments.url is not None:
        tally = measure(arguments.url, lm, **load)
    else:
        options = ["--engine", arguments.engine, "--model", arguments.model]
        options += ["--most-in-flight", str(arguments.most_in_flight)]
        with serving(*options) as (url, pid):
            tally = measure(url, lm, pid=pid, **load)
    found = summary(tally, arguments.seconds)
    how = {"engine": arguments.engine, "model": arguments.model, **load}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**how, **found, "losses": tally.lost[:20]}, indent=1) + "\n"
    )
    for name, value in {**how, **found}.items():
        print(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |")
    if tally.lost or tally.mixed_up:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
