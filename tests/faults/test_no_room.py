"""No memory, no disk, damaged files: back-pressure, or the previous good one, said loudly."""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.adapter_follower import LONGEST_LAG_VERSIONS, AdapterFollower
from actors.outbox import Outbox
from learner.checkpoint import load_latest, reserve_version, reserved_version
from learner.intake import Intake
from learner.learner import Learner
from posteriori.errors import CorruptPayload, StorageFull
from posteriori.lm import LanguageModel
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import EmbeddedServer
from tests.faults.accounts import check_whole
from tests.faults.test_speeds import FakeEngine
from tests.learner.helpers import (
    ScriptedBuffer,
    random_draws,
    random_strings,
    run_config,
    tiny_problem,
    trajectory,
)

pytestmark = pytest.mark.faults

STEPS = 8


class Bench:
    """A learner on a real Redis whose draws are given; its events and metrics are kept."""

    def __init__(self, lm: LanguageModel, client: Any, directory: Path) -> None:
        self.lm, self.client, self.directory = lm, client, directory
        self.events: list[tuple[str, str]] = []
        self.at_step: dict[int, Callable[[], object]] = {}
        self.versions: dict[int, int] = {}
        self.draws = random_draws(tiny_problem(lm), STEPS)

    def learner(self, **options: Any) -> Learner:
        settings = {
            "steps": STEPS, "publish_every_steps": 1, "checkpoint_every_steps": 1,
        }  # fmt: skip
        config = run_config(self.lm, **(settings | options.pop("settings", {})))
        return Learner(
            config, self.lm, [tiny_problem(self.lm)], ScriptedBuffer(self.draws),  # type: ignore[arg-type]
            RedisAdapters(self.client, "r"), self.directory,
            on_metrics=self._on_metrics,
            on_event=lambda kind, what: self.events.append((kind, what)), **options,
        )  # fmt: skip

    def _on_metrics(self, step: int, _metrics: Mapping[str, float]) -> None:
        self.versions[step] = RedisAdapters(self.client, "r").latest()
        self.at_step.get(step, lambda: None)()

    def told(self, kind: str) -> list[str]:
        return [what for found, what in self.events if found == kind]


@contextmanager
def largest_file(bytes_: int) -> Iterator[None]:
    """This process writes no file beyond a size: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_learner_without_room_in_redis_leaves_the_previous_version_in_force(
    server: EmbeddedServer, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """May be lost: versions between two that were published; heartbeats, events and metrics meanwhile."""
    client = connect(server.url)
    bench = Bench(tiny_lm, client, tmp_path / "run")
    registry = RunRegistry(client, "r")

    def fill() -> None:
        client.config_set("maxmemory", 1)
        # What is only told must end nobody.
        registry.beat("learner", {"step": 3})
        assert registry.event("tick", "told to nobody") is None
        assert registry.record(3, {"loss": 1.0}) is None

    bench.at_step = {3: fill, 5: lambda: client.config_set("maxmemory", 2**26)}
    learner = bench.learner()
    learner.run()
    assert learner.step == STEPS
    complaints = bench.told("publish_failed")
    assert len(complaints) == 2
    assert all("WAS NOT PUBLISHED" in what and "stays in force" in what for what in complaints)
    # In force after steps 3, 4 and 5: the same one. Then the next number: none is used twice.
    assert bench.versions[3] == bench.versions[4] == bench.versions[5]
    assert bench.versions[6] == bench.versions[5] + 1
    assert (
        learner.version
        == RedisAdapters(client, "r").latest()
        == reserved_version(learner.checkpoint_directory)
    )


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_goes_on(
    server: EmbeddedServer, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """May be lost: checkpoints while there is no room, and if killed then, the steps since the last one.
    At the end there must be one: without, the run says so and fails."""
    bench = Bench(tiny_lm, connect(server.url), tmp_path / "run")
    limit = largest_file(20_000)
    newest: list[int] = []
    bench.at_step = {
        3: lambda: limit.__enter__(),
        5: lambda: newest.append(load_latest(tmp_path / "run" / "checkpoints").step),  # type: ignore[union-attr]
        6: lambda: limit.__exit__(None, None, None),
    }
    learner = bench.learner()
    learner.run()
    assert newest == [3]
    complaints = bench.told("checkpoint_failed")
    assert len(complaints) == 3
    assert "NO ROOM for the checkpoint of step 4" in complaints[0]
    assert "written before are intact" in complaints[0]
    assert load_latest(learner.checkpoint_directory).step == STEPS  # type: ignore[union-attr]

    again = bench.learner(resume=True, settings={"steps": STEPS + 1})
    again.buffer = ScriptedBuffer(bench.draws, start=0)  # type: ignore[assignment]
    again.intake._buffer = again.buffer
    with largest_file(20_000), pytest.raises(StorageFull, match="No room for the checkpoint"):
        again.run()


def test_a_damaged_checkpoint_is_said_loudly_and_the_one_before_is_used(
    server: EmbeddedServer, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """May be lost: the steps between the two."""
    bench = Bench(tiny_lm, connect(server.url), tmp_path / "run")
    learner = bench.learner()
    learner.run()
    newest = learner.checkpoint_directory / f"step-{STEPS:08d}" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    newest.write_bytes(bytes(data))
    resumed = bench.learner(resume=True)
    assert resumed.step == STEPS - 1
    (complaint,) = bench.told("checkpoint_damaged")
    assert f"step-{STEPS:08d} IS DAMAGED" in complaint and "checksum" in complaint
    assert resumed.version == learner.version  # and no version number is used again


def test_versions_that_redis_forgot_are_not_used_again(
    server: EmbeddedServer, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """May be lost: all of Redis, and every checkpoint. Actors elsewhere may still hold the old versions."""
    bench = Bench(tiny_lm, connect(server.url), tmp_path / "run")
    learner = bench.learner(settings={"steps": 5, "checkpoint_every_steps": 100})
    learner.run()
    used = learner.version
    bench.client.flushall()
    for checkpoint in learner.checkpoint_directory.glob("step-*"):
        (checkpoint / "manifest.json").unlink()
    after = bench.learner(resume=True, settings={"steps": 1})
    after.run()
    assert after.version == RedisAdapters(bench.client, "r").latest() == used + 2


def test_the_reserved_version_survives_rubbish_and_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """May be lost: the number alone, when its file is damaged; checkpoint and store know it too."""
    assert reserved_version(tmp_path) == 0
    reserve_version(tmp_path, 7)
    with largest_file(21):  # what it holds already is room enough
        reserve_version(tmp_path, 10**9)
    assert reserved_version(tmp_path) == 10**9
    with largest_file(0), pytest.raises(StorageFull):
        reserve_version(tmp_path / "elsewhere", 1)
    (tmp_path / "last-version").write_bytes(b"\xff\x00")
    with caplog.at_level(logging.WARNING):
        assert reserved_version(tmp_path) == 0
    assert "IS DAMAGED" in caplog.text


def test_a_disk_that_redis_cannot_write_makes_both_sides_wait(
    server: EmbeddedServer, tiny_lm: LanguageModel
) -> None:
    """May be lost: nothing that was acknowledged before or is afterwards. What is acknowledged in the second
    in which the disk fills is acknowledged from memory; the server writes it down when there is room."""
    client = connect(server.url)
    problem = tiny_problem(tiny_lm, contexts=(" the",))
    config = run_config(tiny_lm, prompts_per_step=1)
    config = config.model_copy(
        update={"replay": config.replay.model_copy(update={"deadline_seconds": 60.0})}
    )
    buffer = RedisBuffer(client, "r", config.replay, seed=0)
    strings = random_strings(problem.moves(problem.prompts[0]), 400, 0)
    outbox = Outbox(buffer, 4, 60.0)

    def put(first: int) -> None:
        outbox.put([trajectory(problem, problem.prompts[0], z) for z in strings[first : first + 8]])
        outbox.flush()

    put(0)
    size = (server.directory / "appendonly.aof").stat().st_size
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 100, -1))
    first = 8
    while outbox.reason is None:
        assert first < 400
        put(first)
        first += 8
        time.sleep(0.02)
    assert "cannot write to its disk" in outbox.reason
    intake = Intake(
        config, {problem.name: problem}, buffer, threading.Event(), lambda *_: None, lambda: 0
    )
    waits = intake._draw_or_wait()
    assert waits.wait is not None and "cannot write to its disk" in waits.wait

    mend = threading.Timer(1.0, lambda: resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits))
    mend.start()
    assert intake.draw()  # waits until there is room, then goes on
    mend.join()
    while len(outbox):
        outbox.flush()
    assert outbox.reason is None
    check_whole(client, "r")


class TestDamagedAdapter:
    """The bytes of a version in the store are not those that were published."""

    @staticmethod
    def publish(client: Any, version: int, damaged: bool) -> None:
        RedisAdapters(client, "r").publish(version, {"weights": b"%d" % version * 100})
        if damaged:
            client.hset(f"posteriori:{{r}}:adapters:files:{version}", "weights", b"rubbish")

    def test_the_previous_one_stays_in_force_until_a_good_one_comes(
        self, server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """May be lost: the damaged version. It is never sampled from; said once, not at every poll."""
        client = connect(server.url)
        engine, told = FakeEngine(1, 0), []
        follower = AdapterFollower(
            engine, RedisAdapters(client, "r"), tmp_path / "a", lambda *event: told.append(event)
        )
        self.publish(client, 1, damaged=False)
        assert follower.poll(set())
        self.publish(client, 2, damaged=True)
        assert not follower.poll(set()) and not follower.poll(set())
        assert (follower.version, engine.adapter_versions) == (1, (1,))
        ((kind, what),) = told
        assert kind == "adapter_refused"
        assert "VERSION 2 CANNOT BE USED" in what and "version 1 stays in force" in what
        assert [path.name for path in (tmp_path / "a").iterdir()] == [follower._paths[1].name]
        self.publish(client, 3, damaged=False)
        assert follower.poll(set())
        assert follower.version == 3

    def test_but_not_for_ever(self, server: EmbeddedServer, tmp_path: Path) -> None:
        """Too far behind, the actor ends: another one may be on a better machine."""
        client = connect(server.url)
        follower = AdapterFollower(FakeEngine(1, 0), RedisAdapters(client, "r"), tmp_path)
        for version in range(1, LONGEST_LAG_VERSIONS + 1):
            self.publish(client, version, damaged=True)
            assert not follower.poll(set())
        self.publish(client, LONGEST_LAG_VERSIONS + 1, damaged=True)
        with pytest.raises(CorruptPayload, match="checksum"):
            follower.poll(set())
