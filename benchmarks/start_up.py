"""From the command `posteriori train RUN.yaml` to the first training step: pocket, vLLM, Ray and an embedded Redis.

    python -m benchmarks.start_up

A fresh process each time, the page cache warm. Beside it, in turn, what no start can do without: a process that
imports torch, transformers and vLLM and ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.measure import Report, Row, Target, main
from posteriori.errors import StorageUnreachable, UserError
from replay.connection import connect
from replay.registry import RunRegistry
from replay.server import running_address

TARGET = Target(40.0)
STARTS = 3
DEADLINE_SECONDS = 600.0
POLL_SECONDS = 0.1
STOP_SECONDS = 180.0
IMPORTS = "import torch, transformers, vllm; from vllm import LLMEngine"
RUN: dict[str, Any] = {
    "run": "start",
    "model": "pocket",
    "problems": [
        {
            "name": "middle",
            "kind": "infilling",
            "prompts": [{"x": "Mia found a", "y": ". The wallet was full of money."}],
            "max_tokens": 5,
        }
    ],
    "learner": {"steps": 100_000},
    "oracle_max_strings": 1,
}


def registry_of(directory: Path, run: str) -> RunRegistry | None:
    """The registry of a run on this machine; None: there is none yet."""
    try:
        address = running_address(directory / "redis")
        return RunRegistry(connect(address, retries=0), run)
    except (UserError, StorageUnreachable):
        return None


def start(parent: Path, engine: str, model: str, problems: list[Any]) -> dict[str, float]:
    """Start a run, wait for its first step and end it.

    Returns:
        Seconds from the command to ``first step``, and to each kind of event that came before it.

    Raises:
        UserError: the run ended, or took no step in ``DEADLINE_SECONDS``.
    """
    sampling = {"engine": engine}
    document = {**RUN, "model": model, "problems": problems, "sampling": sampling}
    file = parent / "run.yaml"  # JSON is YAML
    file.write_text(json.dumps({**document, "output_directory": str(parent / "runs")}))
    log = parent / "log"
    began, began_unix = time.monotonic(), time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "posteriori.cli", "train", str(file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        registry = None
        while True:
            registry = registry or registry_of(parent / "runs" / RUN["run"], RUN["run"])
            if registry is not None and any(row.step >= 1 for row in registry.history(limit=8)):
                found = {"first step": time.monotonic() - began}
                break
            if process.poll() is not None or time.monotonic() - began > DEADLINE_SECONDS:
                tail = log.read_text(errors="replace")[-2000:]
                raise UserError(f"The run took no step. Its log ends with:\n{tail}", "See above.")
            time.sleep(POLL_SECONDS)
        for event in registry.events():
            found.setdefault(event.kind, event.unix_seconds - began_unix)
        return found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def imports() -> float:
    """Seconds of a process that imports what every engine needs."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.monotonic() - began


def measure_with(starts: int, engine: str, model: str, problems: list[Any]) -> Report:
    """``starts`` runs of a model and its problems."""
    seconds, floors, stages = [], [], []
    for _ in range(starts):
        with TemporaryDirectory(prefix="start-up-") as parent:
            found = start(Path(parent), engine, model, problems)
        seconds.append(found["first step"])
        stages.append(found)
        floors.append(imports())
    ratios = (np.array(seconds) / np.array(floors)).tolist()
    middle, floor = float(np.median(seconds)), float(np.median(floors))
    rows = [
        Row("command to first training step, s", seconds, TARGET, middle, None, "s"),
        Row("the same ÷ importing torch, transformers and vLLM", ratios, None, middle, floor, "s"),
    ]
    return Report(rows, {"engine": engine, "seconds to each event": stages})


def measure(quick: bool) -> Report:
    """See the module."""
    return measure_with(1 if quick else STARTS, "vllm", "pocket", RUN["problems"])


if __name__ == "__main__":
    main("start_up", __doc__ or "", measure)
