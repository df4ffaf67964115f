"""The other side of a run for benchmarks of the sampler: a real learner in a process that can be paused."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from posteriori.config import RunConfig

ORIGINAL_CORES: list[int] = psutil.Process().cpu_affinity() or [0]
"""Of the process that measures, before it pins itself; a child is told its core, since it inherits a pinned one."""


def core(number: int) -> list[int]:
    """A core to pin to; the last one where there are fewer."""
    own = sorted(ORIGINAL_CORES)
    return [own[min(number, len(own) - 1)]]


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


def learn(config: RunConfig, url: str, directory: Path, cores: list[int]) -> None:
    """A learner on ``cores``, until the process is killed."""
    from learner.process import LearnerProcess

    psutil.Process().cpu_affinity(cores)
    LearnerProcess(config.model_dump(mode="json"), url, str(directory)).run()


@contextmanager
def learning(config: RunConfig, url: str, directory: Path) -> Iterator[Pausable]:
    """A learner in a process of its own, on the second core, while the block runs."""
    process = multiprocessing.get_context("spawn").Process(
        target=learn, args=(config, url, directory, core(1)), daemon=True
    )
    process.start()
    try:
        yield Pausable(process.pid or 0)
    finally:
        process.kill()
        process.join()
