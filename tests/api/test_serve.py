"""`posteriori serve` as users start it, with vLLM: versions, seeds, streams, and a clean end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from posteriori.client import Client
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.messages import PosteriorSample, SamplesEnd
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import build_problem
from tests.api.conftest import PROBLEM


@contextmanager
def serving(model: Path, folder: Path, engine: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of a service; ends it like Ctrl-C does."""
    arguments = ["--engine", engine, "--model", str(model), "--runs", str(folder), "--port", "0"]
    log = (folder.parent / f"serve-{engine}.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "posteriori.cli", "serve", "--lora-rank", "8", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "1000", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, Path(log.name).read_text()[-3000:]
        yield found.group(), process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()
            log.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_serve(
    engine: str,
    tiny_lm: LanguageModel,
    tiny_lm_path: Path,
    run_folder: Path,
    adapters: dict[int, Path],
) -> None:
    problem = build_problem(ProblemConfig(**PROBLEM), tiny_lm)
    prompt = problem.prompts[0]
    policies = {v: tiny_lm.with_adapter(path) for v, path in adapters.items()}
    with (
        serving(tiny_lm_path, run_folder, engine) as (url, process),
        Client(url, retry_seconds=180) as client,
    ):
        for version in (1, 2, 1):
            found = client.samples(run="r", n=40, seed=version, version=version)
            for other, policy in policies.items():
                expected = sequence_log_q(
                    policy,
                    problem.policy_ids(prompt),
                    problem.moves(prompt),
                    [s.tokens for s in found.samples],
                )
                gap = np.abs(np.array([s.log_q for s in found.samples]) - expected).max()
                assert (gap < 2e-3) == (other == version), (version, other, gap)
        again = client.samples(run="r", n=40, seed=1, version=1)
        assert [s.tokens for s in again.samples] == [s.tokens for s in found.samples]
        *rows, end = list(client.stream(run="r", n=40, seed=1, version=1))
        assert isinstance(end, SamplesEnd)
        rows = sorted((r for r in rows if isinstance(r, PosteriorSample)), key=lambda r: r.index)
        assert [row.tokens for row in rows] == [s.tokens for s in found.samples]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
