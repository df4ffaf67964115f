"""``posteriori top``: learner, buffer, actors and the newest events of a run, in the terminal.

It reads what anybody may read, from this machine's folder or through a service, so that any number of
people can watch any run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posteriori.calls import ServiceError
from posteriori.client import Client
from posteriori.commands.run_control import NotLive
from posteriori.commands.runs import LocalRuns
from posteriori.run_messages import ActorInfo, ActorsInfo, BufferInfo, HistoryRow, RunEvent, RunInfo

SHOWN_EVENTS = 6
CURVE_POINTS = 48
ENDED = frozenset({"stopped", "finished", "failed"})
CURVES = ("loss", "ess", "staleness", "idle_ratio", "log_reward", "gradient_norm")
"""Metrics shown with their course; of X's with an oracle TV and log Z are shown too."""
BLOCKS = "▁▂▃▄▅▆▇█"
SILENT_SECONDS = 5.0
"""An actor that has not beaten for so long is shown in red."""


@dataclass
class Screen:
    """What has been seen of a run so far.

    Attributes:
        run: at a glance, as of the last look.
        actors: as of the last look; None: the run is not live.
        curves: newest values of every metric, oldest first.
        events: the newest.
    """

    run: RunInfo
    actors: ActorsInfo | None = None
    curves: dict[str, deque[float]] = field(default_factory=dict)
    events: deque[RunEvent] = field(default_factory=lambda: deque(maxlen=SHOWN_EVENTS))

    def add_rows(self, rows: Iterable[HistoryRow]) -> None:
        """Take in learner steps."""
        for row in rows:
            for name, value in row.metrics.items():
                if value is not None:
                    self.curves.setdefault(name, deque(maxlen=CURVE_POINTS)).append(value)

    def render(self) -> RenderableType:
        """The whole screen."""
        parts: list[RenderableType] = [
            _panel("learner", Group(_progress(self.run), _learner(self.curves)))
        ]
        if self.run.buffer is not None:
            parts.append(_panel("buffer", _buffer(self.run.buffer)))
        if self.actors is not None:
            wanted = self.actors.desired
            title = f"actors: {len(self.actors.actors)} alive"
            parts.append(
                _panel(
                    title if wanted is None else f"{title}, {wanted} wanted",
                    _actors(self.actors.actors),
                )
            )
        if self.events:
            parts.append(_panel("events", _events(self.events)))
        return Group(*parts)


def watch(
    runs: Client | LocalRuns, run: str, console: Console, *, once: bool, seconds: float
) -> None:
    """Look at a run every so many seconds until it has ended.

    Args:
        runs: where it is.
        run: its name, or path.
        console: where to; without a terminal it is printed once.
        once: print once in any case.
        seconds: between two looks.

    Raises:
        UserError: there is no such run, or the service cannot be asked.
    """
    screen = Screen(runs.run(run))
    after, last_event = "0-0", "0-0"

    def look() -> None:
        nonlocal after, last_event
        screen.run = runs.run(run)
        history = runs.history(run, after)
        screen.add_rows(history.rows)
        after = history.next_after
        try:
            screen.actors = runs.actors(run)
            for event in runs.events(run, last_event):
                screen.events.append(event)
                last_event = event.id
        except NotLive:
            screen.actors = None
        except ServiceError as refused:
            if refused.code != "not_live":
                raise
            screen.actors = None

    look()
    if once or not console.is_terminal:
        console.print(screen.render())
        return
    with Live(screen.render(), console=console, auto_refresh=False, screen=False) as live:
        while screen.run.state not in ENDED:
            time.sleep(seconds)
            look()
            live.update(screen.render(), refresh=True)


def sparkline(values: Sequence[float]) -> str:
    """The course of values in blocks, lowest to highest."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim")


def _progress(run: RunInfo) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    state = run.state if run.failure is None else f"{run.state}: {run.failure}"
    colour = {"failed": "red", "running": "green"}.get(run.state, "yellow")
    done = run.step or 0
    grid.add_row(
        Text(run.run, style="bold"),
        Text(state, style=colour),
        f"step {done} of {run.steps}",
        ProgressBar(total=run.steps, completed=done, width=32),
        f"version {run.version}",
    )
    return grid


def _learner(curves: Mapping[str, Sequence[float]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    exact = [name for name in curves if name.startswith(("tv/", "kl/", "log_z/"))]
    for name in (*(name for name in CURVES if name in curves), *sorted(exact)):
        values = curves[name]
        truth = curves.get(name.replace("log_z/", "log_z_exact/")) if "log_z/" in name else None
        table.add_row(
            name,
            f"{values[-1]:.4g}",
            Text(sparkline(values), style="cyan"),
            f"exact {truth[-1]:.4g}" if truth else "",
        )
    return table if table.row_count else Text("no step yet", style="dim")


def _buffer(buffer: BufferInfo) -> RenderableType:
    fill = buffer.payload_bytes / buffer.capacity_bytes
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        f"{buffer.trajectories:,} trajectories",
        f"{fill:.1%} full",
        f"{buffer.inserted:,} inserted",
        f"{buffer.merged:,} merged",
        f"{buffer.dropped:,} dropped",
        f"{buffer.evicted:,} evicted",
        f"{buffer.drawn:,} drawn",
    )
    return grid


def _actors(actors: Sequence[ActorInfo]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("actor", "state", "version", "samples/s", "tokens/s", "idle", "last beat"):
        table.add_column(heading, justify="left" if heading in ("actor", "state") else "right")
    for actor in actors:
        fields = actor.fields
        waiting = fields.get("waiting_for")
        table.add_row(
            actor.name,
            f"waits: {waiting}" if waiting else str(fields.get("state", "–")),
            str(fields.get("version", "–")),
            _number(fields.get("samples_per_second"), ".1f"),
            _number(fields.get("tokens_per_second"), ".0f"),
            _number(fields.get("idle_ratio"), ".0%"),
            f"{actor.age_seconds:.1f} s",
            style="red" if actor.age_seconds > SILENT_SECONDS else "",
        )
    return table


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def _events(events: Iterable[RunEvent]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for event in events:
        when = time.strftime("%H:%M:%S", time.localtime(event.unix_seconds))
        table.add_row(Text(when, style="dim"), event.kind, Text(event.message))
    return table
