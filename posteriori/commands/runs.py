"""Runs of this machine's folder, asked and told what a client of the service asks and tells.

``posteriori runs | scale | stop | logs`` work on either: on a folder through each run's registry, or with
``--url`` through a service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from posteriori.client import Client
from posteriori.commands.run_control import NotLive, RunControl
from posteriori.commands.run_directory import RunDirectory, find
from posteriori.run_messages import ActorsInfo, History, RunEvent, RunInfo, RunList

API_KEY_ENVIRONMENT = "POSTERIORI_API_KEY"
POLL_SECONDS = 0.5
ROWS = 1000
"""Of a history, or events, that are read at a time."""


@dataclass(frozen=True)
class LocalRuns:
    """The part of :class:`posteriori.Client` that needs no engine, without a service."""

    folder: Path = Path("runs")

    def runs(self) -> RunList:
        """All runs in the folder."""
        names = sorted(file.parent.name for file in self.folder.glob("*/run.yaml"))
        return RunList(runs=[self.run(str(self.folder / name)) for name in names])

    def run(self, run: str) -> RunInfo:
        """One run, by path or name."""
        return RunControl(find(run)).info()

    def stop(self, run: str) -> RunInfo:
        """Ask a run to save and stop."""
        control = RunControl(find(run))
        control.stop("asked on the command line")
        return control.info()

    def scale(self, run: str, actors: int) -> ActorsInfo:
        """Set the number of rollout actors wanted."""
        return RunControl(find(run)).scale(actors)

    def actors(self, run: str) -> ActorsInfo:
        """Rollout actors wanted, and those that beat."""
        return RunControl(find(run)).actors()

    def history(self, run: str, after: str = "0-0") -> History:
        """Metrics of learner steps after an id."""
        return RunControl(find(run)).history(after, ROWS)

    def events(self, run: str, after: str = "0-0", follow: bool = False) -> Iterator[RunEvent]:
        """What happened, and with ``follow`` what happens until the run ends."""
        control = RunControl(find(run))
        found = control.events(after, limit=ROWS)
        while True:
            yield from found
            after = found[-1].id if found else after
            if not follow and not found:
                return
            if not found:
                time.sleep(POLL_SECONDS)
            try:
                found = control.events(after, limit=ROWS)
            except NotLive:
                return

    def log(self, run: str, lines: int = 200) -> str:
        """The end of what the driver has printed, of a run that a service launched."""
        return RunControl(RunDirectory(find(run).path)).log(lines)


def of(url: str | None) -> Client | LocalRuns:
    """Runs behind a service, or in the folder ``runs``."""
    return LocalRuns() if url is None else client(url)


def client(url: str) -> Client:
    """A client with the key of the environment."""
    return Client(url, os.environ.get(API_KEY_ENVIRONMENT))


def show(found: list[RunInfo], console: Console) -> None:
    """Print runs as a table."""
    table = Table("run", "state", "step", "version", "actors wanted", "loss", "problems")
    for run in found:
        loss = run.metrics.get("loss")
        table.add_row(
            run.run,
            run.state if run.failure is None else f"{run.state}: {run.failure}",
            f"{run.step if run.step is not None else '–'} of {run.steps}",
            str(run.version or "–"),
            "–" if run.desired_actors is None else str(run.desired_actors),
            "–" if loss is None else f"{loss:.4g}",
            ", ".join(run.problems),
        )
    console.print(table)


def show_log(runs: Client | LocalRuns, run: str, follow: bool, console: Console) -> None:
    """Print the driver's log, if there is one, then the events."""
    console.print(runs.log(run), end="", highlight=False, markup=False)
    try:
        for event in runs.events(run, follow=follow):
            when = time.strftime("%H:%M:%S", time.localtime(event.unix_seconds))
            console.print(f"{when} {event.kind}: {event.message}", highlight=False, markup=False)
    except NotLive as ended:
        console.print(f"[dim]{ended.problem}[/dim]", highlight=False)
