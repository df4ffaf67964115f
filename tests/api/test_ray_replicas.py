"""Engines that come by themselves. Apart from test_ray_host.py, whose replicas hold both cores of a small machine."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.serve.config import AutoscalingConfig

from api import ray_host
from tests.api.conftest import Running, served, settings_for, until
from tests.api.test_ray_host import START_SECONDS, Observed, ask_all, host_of, ready


@pytest.mark.ray
@pytest.mark.slow
def test_under_load_there_are_more_replicas(
    tiny_lm_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_host, "EngineReplica", Observed)
    prompt = functools.partial(AutoscalingConfig, upscale_delay_s=1, metrics_interval_s=1)
    monkeypatch.setattr(ray_host, "AutoscalingConfig", prompt)
    settings = settings_for(tiny_lm_path, run_folder, ray=True, replicas=1, max_replicas=2, port=1)
    enough = threading.Event()

    def ask(running: Running, seed: int) -> int:
        """Samples drawn, one request after another, until there are enough replicas."""
        answered = 0
        with running.client(retry_seconds=0.0) as client:
            while not enough.is_set():
                found = client.samples(run="r", problem="long", n=512, seed=seed, version=0)
                assert len(found.samples) == 512
                answered += 512
        return answered

    with served(settings, wait=False) as running:
        until(lambda: ready(running)[0], START_SECONDS, 0.5)
        (alone,) = ask_all(host_of(running), "pid")
        # Eight calls of 64 samples each: four times as many as one replica is to have.
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(ask, running, seed) for seed in range(4)]
            try:
                until(
                    lambda: len(set(ask_all(host_of(running), "pid"))) == 2,
                    START_SECONDS,
                    1.0,
                )
            finally:
                enough.set()
            assert all(answer.result() > 0 for answer in asked)
        assert alone in ask_all(host_of(running), "pid")
