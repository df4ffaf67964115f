"""`make chaos`: a run under random kills, held against the same run left alone.

    python -m tests.faults.chaos --seconds 900 --kills 30 --seed 0 --directory runs/chaos

Kills come at random times from a seeded generator: an actor, all actors, the learner, Redis, or the
driver with everything it started (continued with --resume). Every third one is made inside an operation:
Redis during an insert into the buffer or a publication, the learner during a publication or a checkpoint,
an actor during an insert (see tests/faults/instruments.py). At the end

- the run stops when asked to, with exit status 0;
- every acknowledged trajectory is in the buffer, once and whole;
- no adapter version was published twice;
- the mean loss and the mean TV of the second half of the steps lie within noise of an undisturbed run of
  as many steps: their distance is below 3 standard errors of block means, see :func:`apart`.

Prints what it did as JSON. Exit status 1 if anything of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from replay.server import EmbeddedServer, connect
from tests.faults.accounts import acknowledged, check_versions, settle
from tests.faults.plain_run import PlainRun
from tests.faults.train_run import RUN, TrainRun, run_file
from tests.tiny import write_tiny_lm

PLAIN = ("actor", "all actors", "learner", "redis", "driver")
WEIGHTS = (4, 1, 3, 3, 1)
INSIDE = (
    # operation, who is killed: None for the process that is in it, and the longest delay in seconds
    ("insert", "redis", 0.002),
    ("insert", None, 0.002),
    ("publish", "redis", 0.004),
    ("publish", None, 0.004),
    ("checkpoint", None, 0.02),
)
ORDER_SECONDS = 60.0
"""A kill inside an operation that does not come to pass within this is counted as missed."""
BLOCKS = 8
"""Per half run: block means of so many steps are nearly independent."""


@dataclass
class Tally:
    """What was done, and what came of it."""

    seed: int
    seconds: float = 0.0
    steps: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    inside: int = 0
    resumes: int = 0
    acknowledged: int = 0
    stored: int = 0
    missing: int = 0
    versions: int = 0
    loss: list[float] = field(default_factory=list)
    tv: list[float] = field(default_factory=list)
    loss_alone: list[float] = field(default_factory=list)
    tv_alone: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())


def note_kill(tally: Tally, what: str) -> None:
    tally.kills[what] = tally.kills.get(what, 0) + 1
    print(f"[{time.strftime('%H:%M:%S')}] kill {tally.killed}: {what}", file=sys.stderr, flush=True)


def kill_plain(run: TrainRun, what: str, chance: random.Random) -> bool:
    """Kill now; whether there was something to kill."""
    if what == "driver":
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill_driver()
        psutil.wait_procs(children, timeout=60)  # Redis and Ray end when they notice
        run.start(resume=True)
        return True
    if what == "redis":
        pids = [run.redis_pid()]
    elif what == "learner":
        pids = [run.learner_pid()]
    else:
        pids = sorted(run.sampling_actors().values())
        if what == "actor" and pids:
            pids = [chance.choice(pids)]
    killed = False
    for pid in pids:
        if pid > 0 and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
            killed = True
    return killed


def kill_inside(run: TrainRun, tally: Tally, number: int, chance: random.Random) -> bool:
    """Kill inside an operation; whether it came to pass."""
    what, target, longest = chance.choice(INSIDE)
    pid = run.redis_pid() if target == "redis" else 0
    if target == "redis" and pid == 0:
        return False
    delay = 0.0 if target == "redis" and chance.random() < 0.5 else chance.uniform(0, longest)
    run.order(what, number, pid, delay)
    deadline = time.monotonic() + ORDER_SECONDS
    while time.monotonic() < deadline:
        for note in run.notes():
            if note["what"] == "kill" and note["order"] == number:
                tally.inside += note["inside"]
                note_kill(tally, f"{target or 'itself'} during {what}" if note["inside"] else
                          f"{target or 'itself'} after {what}")  # fmt: skip
                return True
        time.sleep(0.05)
    (run.notes_directory / f"order-{what}").unlink(missing_ok=True)
    return False


def harm(run: TrainRun, seconds: float, kills: int, tally: Tally) -> None:
    """Kill ``kills`` times, spread over ``seconds``."""
    chance = random.Random(tally.seed)
    began = time.monotonic()
    attempt = 0
    while tally.killed < kills or time.monotonic() - began < seconds:
        attempt += 1
        pause = chance.uniform(0.5, 1.5) * seconds / (kills + 1)
        due = min(began + seconds, time.monotonic() + pause)
        time.sleep(max(0.0, due - time.monotonic()))
        if tally.killed >= kills:
            continue
        wants_inside = 3 * tally.inside <= tally.killed
        if wants_inside and kill_inside(run, tally, attempt, chance):
            continue
        what = chance.choices(PLAIN, WEIGHTS)[0]
        if kill_plain(run, what, chance):
            note_kill(tally, what)
            tally.resumes += what == "driver"
        if time.monotonic() - began > 3 * seconds + 600:
            raise AssertionError(f"only {tally.killed} of {kills} kills came to pass")


def curve(run: TrainRun) -> tuple[list[float], list[float], int]:
    """Loss of each step, TV of each evaluation; a step that was done again counts as it was last."""
    losses: dict[int, float] = {}
    distances: dict[int, float] = {}
    for row in run.registry.history():
        if "loss" in row.metrics:
            losses[row.step] = row.metrics["loss"]
        for name, value in row.metrics.items():
            if name.startswith("tv/"):
                distances[row.step] = value
    return (
        [losses[step] for step in sorted(losses)],
        [distances[step] for step in sorted(distances)],
        max(losses),
    )


def second_half(values: list[float]) -> np.ndarray:
    """Means of consecutive blocks of the second half."""
    half = np.asarray(values[len(values) // 2 :])
    return np.asarray([block.mean() for block in np.array_split(half, min(BLOCKS, len(half)))])


def apart(these: list[float], those: list[float]) -> float:
    """How many standard errors two curves' second halves lie apart."""
    one, two = second_half(these), second_half(those)
    error = np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two))
    return float(abs(one.mean() - two.mean()) / error)


def undisturbed(
    kind: type[TrainRun], directory: Path, model: Path, steps: int
) -> tuple[list[float], list[float]]:
    """Curves of the same run, left alone for as many steps."""
    directory.mkdir(parents=True)
    run = kind(directory, run_file(directory, model))
    run.start()
    try:
        run.until(lambda: run.step > 0, "the first step")
        while run.step < steps:
            run.check_alive()
            time.sleep(1.0)
        losses, distances, _ = curve(run)
        run.stop()
    finally:
        run.clean_up()
    return losses[:steps], distances[: len(distances) * steps // max(steps, len(losses))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument(
        "--plain", action="store_true", help="without Ray: many more kills a minute"
    )
    parser.add_argument("--skip-undisturbed", action="store_true", help="do not compare curves")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True)
    model = write_tiny_lm(options.directory / "model")
    tally = Tally(options.seed)
    disturbed = options.directory / "disturbed"
    disturbed.mkdir()
    kind = PlainRun if options.plain else TrainRun
    run = kind(disturbed, run_file(disturbed, model))
    run.start()
    try:
        run.until(lambda: len(run.sampling_actors()) > 0 and run.step > 0, "the run to work")
        began = time.monotonic()
        harm(run, options.seconds, options.kills, tally)
        tally.seconds = time.monotonic() - began
        run.until(lambda: len(run.sampling_actors()) > 0, "actors after the last kill")
        run.advance(20)
        tally.loss, tally.tv, tally.steps = curve(run)
        run.stop()
    except AssertionError as failure:
        tally.problems.append(str(failure))
    finally:
        run.clean_up()
    account(run, tally)
    if not options.skip_undisturbed and not tally.problems:
        tally.loss_alone, tally.tv_alone = undisturbed(
            kind, options.directory / "undisturbed", model, tally.steps
        )
    result = summary(tally)
    (options.directory / "chaos.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 1 if tally.problems else 0


def account(run: TrainRun, tally: Tally) -> None:
    """Settle what was acknowledged against what the buffer holds."""
    notes = list(run.notes())
    try:
        tally.versions = len(check_versions(notes))
        with EmbeddedServer(run.run_directory / "redis", capacity_bytes=2**26) as server:
            settled = settle(connect(server.url), RUN, acknowledged(notes))
    except AssertionError as failure:
        tally.problems.append(str(failure))
        return
    tally.acknowledged, tally.stored = settled.acknowledged, settled.stored
    tally.missing = len(settled.missing)
    if settled.missing:
        tally.problems.append(f"{tally.missing} acknowledged trajectories are missing")


def summary(tally: Tally) -> dict[str, Any]:
    """The tally, with means instead of curves."""
    result = asdict(tally)
    for name in ("loss", "tv", "loss_alone", "tv_alone"):
        values = result.pop(name)
        if len(values) >= 4:
            result[f"{name}_second_half"] = float(second_half(values).mean())
    for name, these, those in (
        ("loss", tally.loss, tally.loss_alone),
        ("tv", tally.tv, tally.tv_alone),
    ):
        if min(len(these), len(those)) >= 8:
            result[f"{name}_standard_errors_apart"] = apart(these, those)
            if result[f"{name}_standard_errors_apart"] > 3:
                tally.problems.append(f"{name} differs from that of the undisturbed run")
    result["problems"] = tally.problems
    return result


if __name__ == "__main__":
    sys.exit(main())
