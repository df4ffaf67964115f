"""The rollout actors' rates, beside the learner's own metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.rollouts import RolloutMetrics
from replay.connection import connect
from replay.registry import RunRegistry
from replay.server import EmbeddedServer


def test_rates_add_up_and_only_actors_that_sample_count(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, capacity_bytes=2**20) as server, connect(server.url) as client:
        registry = RunRegistry(client, "r")
        metrics, seldom = RolloutMetrics(registry, look_seconds=0), RolloutMetrics(registry, 1e6)
        assert metrics() == seldom() == {"actors": 0.0, "samples_per_second": 0.0}
        registry.beat("learner", {"state": "learning", "idle_ratio": 0.9})
        registry.beat("actor-1", {"state": "starting"})
        assert metrics()["actors"] == 0.0
        rates = {"state": "sampling", "samples_per_second": 10.5, "idle_ratio": 0.2}
        registry.beat("actor-1", rates)
        registry.beat("actor-2", rates | {"samples_per_second": 4.5, "idle_ratio": 0.4})
        assert metrics() == pytest.approx(
            {"actors": 2.0, "samples_per_second": 15.0, "actor_idle_ratio": 0.3}
        )
        registry.forget("actor-1")
        assert metrics()["samples_per_second"] == 4.5
        assert seldom()["actors"] == 0.0  # it does not look again so soon
