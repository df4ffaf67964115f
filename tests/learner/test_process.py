"""The learner in its own process, on a real Redis: stopped, killed, resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from learner.process import LearnerProcess
from posteriori.config import RunConfig, parse
from posteriori.device import resolve_device
from posteriori.errors import UserError, WaitTimeout
from posteriori.problems import build_problems
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import EmbeddedServer
from tests.learner.helpers import random_strings, trajectory


@pytest.fixture
def server(tmp_path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26) as server:
        yield server


def run_file(lm_path, **learner) -> RunConfig:
    settings = {
        "steps": 10, "prompts_per_step": 1, "trajectories_per_prompt": 16, "lora_rank": 8,
        "checkpoint_every_steps": 2, "publish_every_steps": 2, "evaluate_every_steps": 5,
    }  # fmt: skip
    return parse(
        {
            "run": "process",
            "model": str(lm_path),
            "problems": [
                {
                    "name": "cats", "kind": "tempered", "temperature": 0.5,
                    "prompts": [{"x": " the"}], "alphabet": [" cat", " dog", " sat"],
                    "stop": ".", "max_tokens": 3,
                }
            ],
            "replay": {
                "samples_per_insert": 1e6, "max_staleness_versions": 10**9, "deadline_seconds": 30
            },
            "learner": settings | learner,
        }
    )  # fmt: skip


class Parts:
    """A run's shared parts, filled with trajectories of random strings."""

    def __init__(self, config, server, lm, fill=True) -> None:
        self.config, self.url = config, server.url
        client = connect(server.url)
        self.registry = RunRegistry(client, config.run)
        self.adapters = RedisAdapters(client, config.run)
        self.registry.begin()
        (problem,) = build_problems(config, lm)
        prompt = problem.prompts[0]
        strings = random_strings(problem.moves(prompt), 32, 0)
        buffer = RedisBuffer(client, config.run, config.replay)
        if fill:
            version = problem.reward.version
            buffer.insert([trajectory(problem, prompt, z, reward_version=version) for z in strings])

    def arguments(self, directory):
        return self.config.model_dump(mode="json"), self.url, str(directory)


def test_a_run_leaves_metrics_events_versions_and_a_checkpoint(
    server, tiny_lm, tiny_lm_path, tmp_path
):
    parts = Parts(run_file(tiny_lm_path), server, tiny_lm)
    process = LearnerProcess(*parts.arguments(tmp_path / "run"))
    assert process.status()["state"] == "starting"
    process.run()
    assert process.status()["state"] == "ended"
    rows = parts.registry.history()
    assert [row.step for row in rows if "loss" in row.metrics] == list(range(1, 11))
    distances = [(row.step, row.metrics["tv/cats"]) for row in rows if "tv/cats" in row.metrics]
    assert [step for step, _ in distances] == [0, 5, 10]
    assert distances[-1][1] < distances[0][1]
    kinds = [event.kind for event in parts.registry.events()]
    assert kinds.count("published") == 6
    assert kinds.count("checkpoint") == 5
    assert parts.adapters.latest() == 6
    assert parts.registry.components()["learner"].fields["step"] == 10.0
    assert parts.registry.failure() is None


def test_a_stop_in_the_registry_ends_the_run_and_resume_finishes_it(
    server, tiny_lm, tiny_lm_path, tmp_path
):
    parts = Parts(run_file(tiny_lm_path, steps=100_000), server, tiny_lm)
    process = LearnerProcess(*parts.arguments(tmp_path / "run"))
    parts.registry.request_stop("enough")
    process.run()  # would take hours otherwise
    stopped = int(process.status()["step"])
    assert stopped < 100_000

    parts.registry.begin()
    parts.config = run_file(tiny_lm_path, steps=stopped + 3)
    again = LearnerProcess(*parts.arguments(tmp_path / "run"), resume=True)
    again.run()
    assert again.status()["step"] == stopped + 3
    versions = [e.message for e in parts.registry.events() if e.kind == "published"]
    assert len(set(versions)) == len(versions)


def test_a_failure_is_reported_and_raised(server, tiny_lm, tiny_lm_path, tmp_path):
    config = run_file(tiny_lm_path)
    replay = config.replay.model_copy(update={"deadline_seconds": 0.2})
    parts = Parts(config.model_copy(update={"replay": replay}), server, tiny_lm, fill=False)
    with pytest.raises(WaitTimeout, match="the buffer is empty"):
        LearnerProcess(*parts.arguments(tmp_path / "run")).run()
    failure = parts.registry.failure()
    assert failure.component == "learner"
    assert "the buffer is empty" in failure.message


@pytest.mark.ray
@pytest.mark.slow
def test_kill_9_loses_nothing_before_the_last_checkpoint(
    server, tiny_lm, tiny_lm_path, tmp_path, monkeypatch
):
    import ray

    from learner.process import LearnerActor

    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    monkeypatch.setenv("PYTHONPATH", root)
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    try:
        parts = Parts(run_file(tiny_lm_path, steps=100_000), server, tiny_lm)
        first = LearnerActor.remote(*parts.arguments(tmp_path / "run"))
        end = first.run.remote()
        process_id = _process_of(parts, threading.Event())
        os.kill(process_id, signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(end, timeout=60)
        reached = max(row.step for row in parts.registry.history())
        latest = parts.adapters.latest()

        parts.config = run_file(tiny_lm_path, steps=reached + 2)
        second = LearnerActor.remote(*parts.arguments(tmp_path / "run"), resume=True)
        ray.get(second.run.remote(), timeout=120)
        assert ray.get(second.status.remote())["step"] == reached + 2
        resumed = [e.message for e in parts.registry.events() if e.kind == "resumed"]
        assert len(resumed) == 1
        # A step is saved before it is recorded.
        assert reached - 2 <= int(resumed[0].rstrip(".").split()[-1]) <= reached + 1
        assert parts.adapters.latest() > latest
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_two_processes_on_ray_learn_and_end_with_the_first_cause(
    server, tiny_lm, tiny_lm_path, tmp_path, monkeypatch
):
    import ray

    from learner.process import LearnerActor

    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    monkeypatch.setenv("PYTHONPATH", root)
    ray.init(
        "local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    try:
        config = run_file(tiny_lm_path, steps=100_000, processes=2, prompts_per_step=2)
        parts = Parts(config, server, tiny_lm)
        learner = LearnerActor.remote(*parts.arguments(tmp_path / "run"))
        end = learner.run.remote()
        _process_of(parts, threading.Event())
        [joined] = [e for e in parts.registry.events() if e.kind == "team"]
        os.kill(int(joined.fields["pid_2"]), signal.SIGKILL)
        with pytest.raises(UserError, match="learner process 2 died"):
            ray.get(end, timeout=120)
        assert "learner process 2 died" in parts.registry.failure().message
    finally:
        ray.shutdown()


def _process_of(parts, pause) -> int:
    """Process id of the learner, once it has learnt something."""
    while True:
        found = parts.registry.components().get("learner")
        if found is not None and found.fields.get("step", 0) >= 3:
            return int(found.fields["pid"])
        pause.wait(0.2)


def test_devices_that_do_not_exist_are_named():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match=r"learner\.device 'cuda:97'"):
        resolve_device("cuda:97")
    with pytest.raises(UserError, match="'abacus'"):
        resolve_device("abacus")
