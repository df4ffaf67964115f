"""A node of a Ray cluster is lost with the actors, or the learner, on it."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.server import EmbeddedServer, connect
from tests.faults.accounts import acknowledged, check_versions, settle
from tests.faults.instruments import ENVIRONMENT
from tests.faults.train_run import ROOT, RUN, TrainRun, run_file

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1200)]


class Nodes:
    """The cluster of tests/faults/cluster_process.py: a head without room for work, and nodes to add."""

    def __init__(self, notes: Path) -> None:
        # Ray with an open port runs anybody's programs: a token of this test's own.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Nodes inherit this, and workers from them.
        environment = {**os.environ, **token, ENVIRONMENT: str(notes)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cluster_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.driver_environment = {**token, "RAY_ADDRESS": self._answer()}

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        assert answer, "the cluster has ended"
        return answer


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "notes").mkdir()
    nodes = Nodes(tmp_path / "notes")
    yield nodes
    nodes.close()


def test_work_moves_to_the_nodes_that_are_left(
    nodes: Nodes, tiny_lm_path: Path, tmp_path: Path
) -> None:
    """May be lost: what was in flight on the node, and the learner's steps since its checkpoint if the
    learner was there. Where there is no room, the work waits for a node."""
    nodes.tell("add 2")
    run = TrainRun(tmp_path, run_file(tmp_path, tiny_lm_path, sampling={"actors": 1}))
    run.environment |= nodes.driver_environment
    run.start()
    try:
        before = run.until(run.sampling_actors, "an actor to sample")
        run.advance(6)
        pid = run.learner_pid()
        # Both are on this node, and there is no other: its loss leaves nothing but driver and Redis.
        nodes.tell("remove")
        run.until(lambda: run.events("learner_died"), "the learner's death to be noticed")
        nodes.tell("add 2")
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
