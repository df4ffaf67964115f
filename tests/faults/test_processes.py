"""SIGKILL of every kind of process of one real run, one after the other, while the run goes on.

The tests share the run and are in order; each leaves it at work. The last one settles accounts.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.server import EmbeddedServer, connect
from tests.faults import soak
from tests.faults.accounts import acknowledged, check_versions, settle
from tests.faults.train_run import RUN, TrainRun, run_file

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]

STEPS_AFTERWARDS = 4
"""More than what was in flight can feed: actors, buffer and learner are all at work again."""


@pytest.fixture(scope="module")
def run(tiny_lm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainRun]:
    directory = tmp_path_factory.mktemp("run")
    run = TrainRun(directory, run_file(directory, tiny_lm_path))
    run.start()
    try:
        run.until(lambda: len(run.sampling_actors()) == 2, "two actors to sample")
        run.advance(6)  # a checkpoint is there
        yield run
    finally:
        run.clean_up()


def test_a_killed_actor_is_replaced(run: TrainRun) -> None:
    """May be lost: the groups it was sampling and those it had not been acknowledged."""
    name, pid = next(iter(run.sampling_actors().items()))
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: name not in run.sampling_actors(), "the death to be noticed")
    run.until(lambda: len(run.sampling_actors()) == 2, "another to take its place")
    assert name not in run.sampling_actors()
    run.advance(STEPS_AFTERWARDS)


def test_all_actors_killed_at_once_are_replaced(run: TrainRun) -> None:
    """May be lost: as above, of each. The learner waits, or replays what there is."""
    before = run.sampling_actors()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: len(set(run.sampling_actors()) - set(before)) == 2, "two new actors")
    run.advance(STEPS_AFTERWARDS)


def test_a_killed_learner_goes_on_from_its_checkpoint(run: TrainRun) -> None:
    """May be lost: the steps since the last checkpoint, which are done again. No version number is used
    twice, though those after the checkpoint had been published."""
    pid = run.learner_pid()
    reached = max(row.step for row in run.registry.history())
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.learner_pid() not in (0, pid), "another learner")
    (resumed,) = run.until(lambda: run.events("resumed"), "the checkpoint to be read")
    found = re.search(r"\d+", resumed)
    assert found is not None and reached - 5 <= int(found[0]) <= reached + 5
    assert run.events("learner_died")
    run.advance(STEPS_AFTERWARDS)


def test_a_killed_redis_is_started_again_and_all_wait_for_it(run: TrainRun) -> None:
    """May be lost: nothing that was acknowledged. The processes are the same afterwards: they waited."""
    actors, learner, redis_pid = run.sampling_actors(), run.learner_pid(), run.redis_pid()
    os.kill(redis_pid, signal.SIGKILL)
    run.until(lambda: run.events("storage_restarted"), "Redis to be started again")
    assert run.redis_pid() != redis_pid
    run.advance(STEPS_AFTERWARDS)
    assert (run.sampling_actors(), run.learner_pid()) == (actors, learner)
    assert "has died; it is started again" in run.output.read_text()


def test_the_memory_of_every_process_is_watched(run: TrainRun) -> None:
    """A short form of `make soak`: too short to tell growth, so what is checked is that all are seen."""
    with soak.idle_ray() as idle:
        found = soak.watch(run, 12.0, idle)
    roles = sorted(name.rpartition(" ")[0] for name in found)
    ours, rays = ["actor", "actor", "driver", "learner", "redis"], ["gcs", "raylet"]
    assert roles == sorted(ours + rays + [f"idle {role}" for role in rays])
    assert all(row.mean_bytes > 2**20 and row.error_bytes_per_hour >= 0 for row in found.values())


def test_in_the_end_all_is_accounted_for(run: TrainRun) -> None:
    """Every acknowledged trajectory is in the buffer, once and whole; the report says what happened."""
    report = run.stop()
    assert report["summary"]["stopped_early"]
    assert report["summary"]["restarts"] == 3
    notes = list(run.notes())
    versions = check_versions(notes)
    assert len(versions) > 5
    with EmbeddedServer(run.run_directory / "redis", capacity_bytes=2**26) as server:
        account = settle(connect(server.url), RUN, acknowledged(notes))
    assert account.acknowledged > 1000
    assert account.missing == []
