"""How many rollout actors one Redis and one intake carry: 1 to 1,000 simulated ones, then ever faster ones.

    python -m benchmarks.scaling                  # four minutes on two cores
    python -m benchmarks.scaling --quick

Real Redis, real bytes (`benchmarks.crowd`), a real learner's intake drawing one trajectory for each that arrives,
adapters of 256 KiB published and fetched; efficiency is stored ÷ offered. Simulator and intake share the machine
with Redis, which in a cluster has its own, so their CPU is in the table too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.crowd_run import CrowdRun, crowd_run
from benchmarks.measure import Report, Row, Target, main

TARGET = Target(0.9, "at least")
ACTORS = (1, 10, 100, 1000)
GROUP_SECONDS = 10.0
FASTER = (4.0, 2.5, 1.5)
"""Seconds of a group with the most actors, until an efficiency falls below the target."""
SECONDS = 12.0
FEW_ACTORS, LONGER_SECONDS = 10, 60.0
"""Of a few actors, which finish so few groups that one more or less would show."""


def crowds(actors: tuple[int, ...], faster: tuple[float, ...], seconds: float) -> list[CrowdRun]:
    """Ever more actors, then the most of them ever faster until they are not kept up with."""
    runs = []
    wanted = [(count, GROUP_SECONDS) for count in actors]
    wanted += [(actors[-1], group_seconds) for group_seconds in faster]
    for count, group_seconds in wanted:
        with TemporaryDirectory(prefix="crowd-") as parent:
            few = count < FEW_ACTORS and seconds >= SECONDS
            measured = LONGER_SECONDS if few else seconds
            runs.append(crowd_run(Path(parent) / "redis", count, group_seconds, measured))
        if group_seconds != GROUP_SECONDS and not TARGET.met(runs[-1].efficiency):
            break
    return runs


def crowd_table(runs: list[CrowdRun]) -> str:
    """As Markdown."""
    lines = [
        "| actors | offered/s | stored/s | drawn/s | insert, p50 and p99 | adapter lag, p50 and p99 | told to wait "
        "| CPU: Redis, intake, simulator |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.actors:,} | {run.offered:,.1f} | {run.stored:,.1f} | {run.drawn:,.1f} "
        f"| {run.insert_p50_milliseconds:.2g} and {run.insert_p99_milliseconds:.2g} ms "
        f"| {run.adapter_lag_p50:.2g} and {run.adapter_lag_p99:.2g} s | {run.told_to_wait:.0%} "
        f"| {run.redis_cpu:.0%}, {run.intake_cpu:.0%}, {run.simulator_cpu:.0%} |"
        for run in runs
    ]
    return "\n".join(lines)


def measure(quick: bool) -> Report:
    """See the module."""
    runs = crowds((1, 5), (), 2.0) if quick else crowds(ACTORS, FASTER, SECONDS)
    rows = []
    print(crowd_table(runs))
    for run in runs:
        name = f"stored ÷ offered, {run.actors:,} actors, {run.offered:,.0f} a second"
        target = TARGET if run.group_seconds == GROUP_SECONDS else None
        rows.append(Row(name, [run.efficiency], target, run.stored, run.offered, "trajectories/s"))
    known = [  # JSON has no NaN, which stands for no insert, or no publication, in that time
        {key: None if value != value else value for key, value in asdict(run).items()}
        for run in runs
    ]
    return Report(rows, {"crowds": known})


if __name__ == "__main__":
    main("scaling", __doc__ or "", measure)
