"""The simulator drives the real buffer, store and intake: what it counts must be what they counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulator import simulate, unit_costs


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
def test_a_few_actors_store_draw_and_follow(tmp_path: Path, servers: int) -> None:
    run = simulate(
        tmp_path,
        actors=3,
        servers=servers,
        seconds=4.0,
        group_seconds=0.2,
        step_seconds=0.05,
        adapter_bytes=1000,
    )
    assert run.failures == []
    assert run.stored_trajectories > 0 and run.drawn_trajectories > 0
    # The limiter holds: no more is drawn than arrives, but for the slack.
    assert run.adapter_versions > 0 and run.adapter_lag_p50_seconds >= 0


def test_costs_are_of_every_operation(tmp_path: Path) -> None:
    costs = unit_costs(tmp_path, servers=1, repeats=20, adapter_bytes=1000)
    assert [cost.operation.split()[0] for cost in costs] == [
        "insert", "draw", "look", "heartbeat", "fetch",
    ]  # fmt: skip
    assert all(cost.reply_milliseconds > 0 for cost in costs)
