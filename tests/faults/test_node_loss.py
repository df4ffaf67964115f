"""A node of a Ray cluster is lost with the actors, or the learner, on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replay.server import EmbeddedServer, connect
from tests.faults.accounts import acknowledged, check_versions, settle
from tests.faults.instruments import ENVIRONMENT
from tests.faults.train_run import RUN, TrainRun, run_file

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for work; nodes are added by the test. Each is processes of its own."""
    from ray.cluster_utils import Cluster

    (tmp_path / "notes").mkdir()
    monkeypatch.setenv(
        ENVIRONMENT, str(tmp_path / "notes")
    )  # nodes inherit it, and workers from them
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    yield cluster
    cluster.shutdown()


def test_work_moves_to_the_nodes_that_are_left(
    cluster: Any, tiny_lm_path: Path, tmp_path: Path
) -> None:
    """May be lost: what was in flight on the node, and the learner's steps since its checkpoint if the
    learner was there. Where there is no room, the work waits for a node."""
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    run = TrainRun(tmp_path, run_file(tmp_path, tiny_lm_path, sampling={"actors": 1}))
    run.environment["RAY_ADDRESS"] = cluster.address
    run.start()
    try:
        before = run.until(run.sampling_actors, "an actor to sample")
        run.advance(6)
        pid = run.learner_pid()
        # Both are on this node, and there is no other: its loss leaves nothing but driver and Redis.
        cluster.remove_node(node, allow_graceful=False)
        run.until(lambda: run.events("learner_died"), "the learner's death to be noticed")
        cluster.add_node(num_cpus=2)
        run.until(lambda: set(run.sampling_actors()) - set(before), "an actor on the new node")
        run.until(lambda: run.learner_pid() not in (0, pid), "the learner on the new node")
        run.advance(4)
        (resumed,) = run.events("resumed")
        found = re.search(r"\d+", resumed)
        assert found is not None and int(found[0]) >= 5
        run.stop(400)
    finally:
        run.clean_up()
    check_versions(run.notes())
    with EmbeddedServer(run.run_directory / "redis", capacity_bytes=2**26) as server:
        account = settle(connect(server.url), RUN, acknowledged(run.notes()))
    assert account.acknowledged > 0 and account.missing == []
