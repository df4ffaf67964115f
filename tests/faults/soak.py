"""`make soak`: does any process of a run grow?

    python -m tests.faults.soak --seconds 3600 --directory runs/soak

Samples the resident memory of every process of a small run and fits a line to the part after the warm-up,
a process at a time. The error of the slope is that of block means, as neighbouring samples are not
independent. A process grows if its slope is more than three errors above zero and adds up to more than
``ALLOWED_BYTES_PER_HOUR`` in an hour; a run that is too short to tell says so by its errors.

Redis grows until buffer and history are at their bounds, and its append-only file is written anew now and then: its
buffer is small here, so that both fill during the warm-up. Ray's own processes grow where nothing is done with
them: beside the run there is an idle Ray, and what its raylet and GCS grow by is taken off. Prints a table as JSON;
exit status 1 if one grows.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from tests.faults.train_run import TrainRun, run_file
from tests.tiny import write_tiny_lm

SAMPLE_SECONDS = 1.0
WARM_UP_SHARE = 0.3
"""Of all the time: allocators settle, the buffer fills, libraries are loaded when first used."""
BLOCKS = 10
ALLOWED_BYTES_PER_HOUR = 8 * 2**20
"""A process that grows by less can run for days; page-granular noise of allocators is of this size."""


@dataclass(frozen=True)
class Growth:
    """Of one process: resident bytes and their slope with its standard error."""

    mean_bytes: float
    bytes_per_hour: float
    error_bytes_per_hour: float

    def grows(self, idle: Growth | None = None) -> bool:
        """Beyond the bound, and beyond what an idle process of its kind grows by."""
        slope, error = self.bytes_per_hour, self.error_bytes_per_hour
        if idle is not None:
            slope -= idle.bytes_per_hour
            error = math.hypot(error, idle.error_bytes_per_hour)
        return slope > 3 * error and slope > ALLOWED_BYTES_PER_HOUR


def growth(seconds: NDArray[np.float64], resident: NDArray[np.float64]) -> Growth:
    """Least squares on block means.

    Args:
        seconds: of the samples, ascending, [n], n ≥ 3.
        resident: bytes, [n].
    """
    blocks = min(BLOCKS, len(seconds))
    x = np.asarray([block.mean() for block in np.array_split(seconds, blocks)])
    y = np.asarray([block.mean() for block in np.array_split(resident, blocks)])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    error = float(np.sqrt(residuals @ residuals / (blocks - 2) / (centred @ centred)))
    return Growth(float(resident.mean()), 3600 * slope, 3600 * error)


def role(process: psutil.Process) -> str | None:
    """What a process of a run is, None for what belongs to Ray alone."""
    line = " ".join(process.cmdline())
    for name, word in (
        ("actor", "ray::Rollout"),
        ("learner", "ray::Learner"),
        ("redis", "redis-server"),
        ("raylet", "/raylet/raylet"),
        ("gcs", "gcs_server"),
    ):
        if word in line and "/bin/sh" not in line:
            return name
    return None


IDLE = "idle "
"""Before the role of a process of the idle Ray."""


@contextmanager
def idle_ray() -> Iterator[psutil.Process]:
    """Ray as a run starts it, with nothing to do; its driver."""
    program = (
        "from posteriori.commands.cluster import connected\nwith connected(): input('ready\\n')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("an idle Ray did not start: see above")
        yield psutil.Process(process.pid)
    finally:
        process.communicate(b"\n")


def sample(root: psutil.Process, driver: str | None, before: str = "") -> dict[str, int]:
    """Resident bytes of a process, where ``driver`` names it, and its descendants, by role and process id."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            name = driver if process == root else role(process)
            if name is not None:
                found[f"{before}{name} {process.pid}"] = process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def watch(run: TrainRun, seconds: float, idle: psutil.Process | None = None) -> dict[str, Growth]:
    """Growth of every process that lived through the part after the warm-up, and of those of an idle Ray."""
    rows: list[tuple[float, dict[str, int]]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        run.check_alive()
        found = sample(psutil.Process(run.pid), "driver")
        rows.append((now, found | (sample(idle, None, IDLE) if idle is not None else {})))
        time.sleep(min(SAMPLE_SECONDS, seconds / (10 * BLOCKS)))
    rows = [row for row in rows if row[0] >= WARM_UP_SHARE * seconds]
    times = np.asarray([row[0] for row in rows])
    always = set.intersection(*(set(row[1]) for row in rows))
    return {
        name: growth(times, np.asarray([row[1][name] for row in rows], dtype=np.float64))
        for name in sorted(always)
    }


def growing(found: Mapping[str, Growth]) -> list[str]:
    """Processes of the run that grow."""
    idle = {name.split()[1]: growth for name, growth in found.items() if name.startswith(IDLE)}
    own = {name: growth for name, growth in found.items() if not name.startswith(IDLE)}
    return [name for name, growth in own.items() if growth.grows(idle.get(name.split()[0]))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True)
    model = write_tiny_lm(options.directory / "model")
    small = {"capacity_bytes": 2**18, "capacity_per_prompt": 64}
    run = TrainRun(options.directory, run_file(options.directory, model, replay=small))
    run.start()
    try:
        run.until(lambda: len(run.sampling_actors()) == 2 and run.step > 20, "the run to work")
        first = run.step
        with idle_ray() as idle:
            found = watch(run, options.seconds, idle)
        steps = run.step - first
        run.stop()
    finally:
        run.clean_up()
    grows = growing(found)
    result = {
        "seconds": options.seconds,
        "steps": steps,
        "processes": {
            name: {
                "mean_mib": round(g.mean_bytes / 2**20, 1),
                "mib_per_hour": round(g.bytes_per_hour / 2**20, 2),
                "error_mib_per_hour": round(g.error_bytes_per_hour / 2**20, 2),
                "grows": name in grows,
            }
            for name, g in found.items()
        },
    }
    (options.directory / "soak.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 1 if grows else 0


if __name__ == "__main__":
    sys.exit(main())
