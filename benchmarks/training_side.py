"""The other side of a run for benchmarks of the sampler: a real learner in a process that can be paused."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from posteriori.config import RunConfig
from posteriori.errors import UserError

START_SECONDS = 180.0


def core(number: int) -> list[int]:
    """A core of this process's to pin to; the last one where there are fewer."""
    own = sorted(ORIGINAL_CORES)
    return [own[min(number, len(own) - 1)]]


ORIGINAL_CORES: list[int] = psutil.Process().cpu_affinity() or [0]


class Pausable:
    """A process that is stopped and continued by signals."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not running inside the block."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


def learn(config: RunConfig, url: str, directory: Path) -> None:
    """A learner on the second core, until the process is killed."""
    from learner.process import LearnerProcess

    psutil.Process().cpu_affinity(core(1))
    LearnerProcess(config.model_dump(mode="json"), url, str(directory)).run()


@contextmanager
def learning(config: RunConfig, url: str, directory: Path) -> Iterator[Pausable]:
    """A learner in a process of its own while the block runs."""
    process = multiprocessing.get_context("spawn").Process(
        target=learn, args=(config, url, directory), daemon=True
    )
    process.start()
    try:
        yield Pausable(process.pid or 0)
    finally:
        process.kill()
        process.join()


def wait_for(what: str, done: object) -> None:
    """Call ``done`` until it says True.

    Raises:
        UserError: not within ``START_SECONDS``.
    """
    assert callable(done)
    deadline = time.monotonic() + START_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise UserError(f"{what} did not come about in {START_SECONDS:g} s.", "See its log.")
        time.sleep(0.01)
