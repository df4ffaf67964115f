"""A run without Ray that does as it is told: learner, Redis and as many actors as are wanted, forked from one process.

`posteriori train` differs in who looks after the processes: its pool is Ray's, which takes tens of seconds to
start (tests/api/test_runs.py scales a run of that kind). What the page reads and writes is the same.

    python -m tests.page.live_run RUN.yaml
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from tests.faults.plain_run import forked

POLL_SECONDS = 0.1


def main(file: Path) -> None:
    """Run until a stop is asked for; leaves adapter and report as a stopped run does."""
    import torch

    from actors.ray_actor import Rollout
    from learner.process import LearnerProcess
    from posteriori.commands.adapters import export
    from posteriori.commands.run_directory import RunDirectory
    from posteriori.config import parse
    from posteriori.lm import LanguageModel
    from replay.connection import connect
    from replay.redis_adapters import RedisAdapters
    from replay.registry import RunRegistry
    from replay.server import EmbeddedServer

    torch.set_num_threads(1)
    config = parse(yaml.safe_load(file.read_text(encoding="utf-8")))
    data, directory = config.model_dump(mode="json"), RunDirectory(config.directory)
    directory.create(config, LanguageModel.load(config.model))
    with (
        directory.locked(),
        EmbeddedServer(directory.redis, config.replay.capacity_bytes) as server,
    ):
        registry = RunRegistry(connect(server.url), config.run)
        registry.begin()
        registry.set_desired_actors(config.sampling.actors)
        path = str(directory.path.resolve())
        learner = forked(LearnerProcess(data, server.url, path).run)
        actors: dict[str, int] = {}
        while os.waitpid(learner, os.WNOHANG) == (0, 0):
            wanted = registry.desired_actors() or 0
            while len(actors) < wanted:
                name = f"actor-{len(actors) + 1}-{time.monotonic_ns() % 10_000}"
                actors[name] = forked(Rollout(data, server.url, name).run)
                registry.event("actor_started", f"Rollout actor {name} starts.")
            while len(actors) > wanted:
                name, process = actors.popitem()
                _end(process)
                registry.forget(name)
                registry.event("actor_stopped", f"Rollout actor {name} left.")
            time.sleep(POLL_SECONDS)
        for process in actors.values():
            _end(process)
        adapters = RedisAdapters(connect(server.url), config.run)
        version = adapters.latest()
        export(adapters, version, directory.adapter)
        rows = registry.history()
        summary = {"steps": rows[-1].step, "adapter_version": version}
        report = {"summary": {**summary, "stopped_early": True}, "assessments": []}
        (directory.path / "report.json").write_text(json.dumps(report), encoding="utf-8")


def _end(process: int) -> None:
    """Of an actor; what it had in flight is nobody's loss."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
