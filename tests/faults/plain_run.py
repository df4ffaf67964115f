"""A run without Ray: the same actors, learner and Redis, forked from one process that has torch loaded.

Ray takes tens of seconds to bring back a process, most of it for imports; a fork takes half a second, so
that a minute holds many kills. What differs from `posteriori train` is who looks after whom: here a loop
of thirty lines with the pool's own state machine (tests/faults/test_processes.py harms the real one).

    python -m tests.faults.plain_run RUN.yaml [--resume]
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.faults.instruments import ENVIRONMENT
from tests.faults.train_run import ROOT, TrainRun

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.05
STOP_SECONDS = 120.0


class PlainRun(TrainRun):
    """A :class:`TrainRun` whose driver is this module; its report is an empty one."""

    def start(self, resume: bool = False) -> None:
        self.forget_server()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.plain_run", str(self.file)]
                + (["--resume"] if resume else []),
                cwd=ROOT,
                env={**os.environ, ENVIRONMENT: str(self.notes_directory)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, seconds: float = STOP_SECONDS) -> dict[str, Any]:
        os.kill(self.pid, signal.SIGINT)
        assert self._process is not None
        code = self._process.wait(seconds)
        assert code == 0, self.output.read_text()[-3000:]
        return {}


def forked(work: Callable[[], object]) -> int:
    """Process id of a child that does some work and dies with its parent, if not before."""
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver passes a stop on through the registry
    try:
        work()
        os._exit(0)
    except BaseException as cause:  # noqa: BLE001  # the last frame of a process
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr, flush=True)
        os._exit(1)


def main(file: Path, resume: bool) -> None:
    """Keep actors, learner and Redis alive until interrupted."""
    import torch

    from actors.pool import ActorPool
    from actors.ray_actor import Rollout
    from learner.process import LearnerProcess
    from posteriori.config import parse
    from posteriori.lm import LanguageModel
    from posteriori.problems import build_problems
    from replay.connection import connect
    from replay.keeper import kept_alive
    from replay.registry import RunRegistry
    from replay.server import EmbeddedServer

    torch.set_num_threads(1)
    config = parse(yaml.safe_load(file.read_text()))
    build_problems(
        config, LanguageModel.load(config.model)
    )  # loads what children need, instruments
    data, directory = config.model_dump(mode="json"), config.directory
    directory.mkdir(parents=True, exist_ok=True)
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: asked.append(number))

    def tell(kind: str, what: str) -> None:
        print(what, flush=True)

    server = EmbeddedServer(directory / "redis", config.replay.capacity_bytes, config.replay.fsync)
    with server, kept_alive(server, tell):
        url = server.url
        registry = RunRegistry(connect(url, patience_seconds=60.0, on_wait=print), config.run)
        registry.begin()
        tag = f"{os.getpid()}"
        pool = ActorPool(config.sampling.actors, lambda number: f"actor-{tag}-{number}")
        actors: dict[int, str] = {}
        learner = 0
        told = False
        while True:
            now = time.monotonic()
            for actor in pool.plan(now).start if not asked else ():
                actors[forked(lambda name=actor: Rollout(data, url, name).run())] = actor  # type: ignore[misc]
            if not learner and not asked:
                process = LearnerProcess(data, url, str(directory), resume=resume)
                learner = forked(process.run)
                resume = True
            if asked and not told:
                registry.request_stop("interrupted")
                told = True
            while True:
                try:
                    ended, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if ended == 0:
                    break
                if ended in actors:
                    name = actors.pop(ended)
                    registry.forget(name)
                    pool.died(name, now, f"status {status}", worked=True)
                elif ended == learner:
                    learner = 0
                    print(f"the learner ended with status {status}", flush=True)
            if asked and not actors and not learner:
                return
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--resume" in sys.argv[2:])
