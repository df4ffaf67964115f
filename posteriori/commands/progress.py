"""Live view of a run in the terminal; one line per evaluation where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 4


class ProgressView:
    """Shows the newest metrics of a run; a context manager.

    Args:
        console: where to.
        steps: learner steps of the whole run.
        cases: names of the X's with an exact oracle.
    """

    def __init__(self, console: Console, steps: int, cases: Sequence[str]) -> None:
        self._console = console
        self._cases = cases
        self._latest: dict[str, float] = {}
        self._waiting = "starting"
        self._actors = ""
        self._buffer = ""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("steps", total=steps)
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._interactive = console.is_terminal
        self._began = time.monotonic()

    def __enter__(self) -> ProgressView:
        if self._interactive:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._interactive:
            self._live.stop()

    def waiting(self, reason: str) -> None:
        """Say what is being waited for before the first step."""
        if reason != self._waiting and not self._interactive:
            self._line(reason)
        self._waiting = reason

    def say(self, what: str) -> None:
        """Show a sentence at once, above whatever is live."""
        self._line(what)

    def actors(self, components: Mapping[str, Mapping[str, Any]], restarts: int) -> None:
        """Newest heartbeats of rollout actors."""
        alive = [row for name, row in components.items() if name.startswith("actor")]
        rate = sum(float(row.get("samples_per_second", 0.0)) for row in alive)
        self._actors = f"{len(alive)} alive, {rate:.0f} samples/s, {restarts} replaced"

    def buffer(self, fill: float, trajectories: int) -> None:
        """Buffer fill, a share of its bytes."""
        self._buffer = f"{trajectories:,} trajectories, {fill:.1%} full"

    def metrics(self, row: Mapping[str, float]) -> None:
        """One learner step."""
        self._latest.update(row)
        self._progress.update(self._task, completed=int(row["step"]))
        if not self._interactive and any(key.startswith("tv/") for key in row):
            distances = " ".join(f"{name} TV {row[f'tv/{name}']:.3f}" for name in self._cases)
            loss = f"loss {row['loss']:.3g}" if "loss" in row else ""
            self._line(f"step {int(row['step'])} {loss} {distances}")

    def _line(self, text: str) -> None:
        self._console.print(
            f"[{time.monotonic() - self._began:6.1f} s] {text}", highlight=False, markup=False
        )

    def _render(self) -> Group:
        if not self._latest:
            return Group(Text(f"{self._waiting} …"), self._progress)
        table = Table.grid(padding=(0, 2))
        table.add_row(
            "loss",
            self._value("loss", ".4g"),
            "staleness",
            self._value("staleness", ".2f"),
            "actors",
            self._actors,
        )
        table.add_row(
            "grad norm",
            self._value("gradient_norm", ".3g"),
            "ESS/K",
            self._value("ess", ".3f"),
            "buffer",
            self._buffer,
        )
        for name in self._cases:
            table.add_row(
                name,
                f"TV {self._value(f'tv/{name}', '.3f')}",
                "log Z",
                self._value(f"log_z/{name}", ".3f"),
                "exact",
                self._value(f"log_z_exact/{name}", ".3f"),
            )
        return Group(self._progress, table)

    def _value(self, key: str, form: str) -> str:
        value = self._latest.get(key, math.nan)
        return "–" if math.isnan(value) else format(value, form)
