"""What all experiments share: seeds, resuming, the table, the claims it must bear out, JSON and plot.

A trial is one seed. It returns rows (method → metrics); the harness keeps them in a file as soon as
the seed is done, so an interrupted experiment goes on with the next seed, and sums up over seeds.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from posteriori.errors import UserError
from posteriori.lm import LanguageModel

SEEDS = 3


def hardware(device: str = "cpu") -> str:
    """CPU cores and architecture this process may use, and the GPU by name if it is to use one."""
    import torch

    cores = len(os.sched_getaffinity(0))
    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{cores} CPU cores ({platform.machine()}){gpu}"


@dataclass(frozen=True)
class Row:
    """What one method scored in one trial; a metric that does not apply to it is left out."""

    method: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One seed of an experiment.

    Attributes:
        seed: of everything random in it.
        quick: the form for tests: same code, minutes become seconds, figures mean nothing.
        directory: its own, empty; runs and adapters may be left there.
        console: for progress.
        device: where models and engines live.
    """

    seed: int
    quick: bool
    directory: Path
    console: Console
    device: str = "cpu"

    def load(self, model: str) -> LanguageModel:
        """A base LM on the trial's device."""
        return LanguageModel.load(model, device=self.device)


@dataclass(frozen=True)
class Column:
    """A metric of the table: its key in the rows, its heading, and how many decimals it is worth."""

    metric: str
    heading: str
    format: str = ".3f"


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over the seeds that have the metric.

    The deviation is 0 where there is one seed or a value is infinite.
    """

    mean: float
    deviation: float
    seeds: int


Summary = Mapping[str, Mapping[str, Cell]]
"""method → metric → cell, methods in the order of their first row."""


@dataclass(frozen=True)
class Claim:
    """Something the paper's table shows and ours must show too, and whether it does."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: of its package and of the command.
        title: of table and plot.
        columns: of the table, in order.
        run: one trial; raises UserError where data or weights it needs are missing.
        claims: judged on the means over seeds.
        plot: writes a PNG from all rows; None: no plot.
    """

    name: str
    title: str
    columns: Sequence[Column]
    run: Callable[[Trial], Sequence[Row]]
    claims: Callable[[Summary], Sequence[Claim]]
    plot: Callable[[Results, Path], None] | None = None


@dataclass(frozen=True)
class Results:
    """All trials of an experiment so far.

    Attributes:
        trials: seed → rows.
        seconds: seed → wall clock of the trial.
        hardware: that each of them ran on.
    """

    experiment: str
    quick: bool
    trials: Mapping[int, Sequence[Row]]
    seconds: Mapping[int, float]
    hardware: Sequence[str]

    def summary(self) -> Summary:
        """Mean ± deviation over seeds."""
        methods = dict.fromkeys(row.method for rows in self.trials.values() for row in rows)
        found: dict[str, dict[str, Cell]] = {}
        for method in methods:
            values: dict[str, list[float]] = {}
            for rows in self.trials.values():
                for row in rows:
                    if row.method == method:
                        for metric, value in row.metrics.items():
                            values.setdefault(metric, []).append(float(value))
            found[method] = {metric: _cell(of_seeds) for metric, of_seeds in values.items()}
        return found


def _cell(values: Sequence[float]) -> Cell:
    deviation = (
        float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0
    )
    return Cell(float(np.mean(values)), deviation, len(values))


def names() -> list[str]:
    """Experiments there are."""
    package = import_module("experiments")
    return sorted(module.name for module in iter_modules(package.__path__) if module.ispkg)


def find(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"No experiment {name!r}.", f"Choose among {', '.join(names())}.")
    experiment: Experiment = import_module(f"experiments.{name}").EXPERIMENT
    return experiment


def run(
    experiment: Experiment,
    *,
    seeds: int,
    quick: bool,
    work: Path,
    out: Path,
    console: Console,
    device: str = "cpu",
) -> Results:
    """Run the seeds that have no results yet and write table, JSON and plot.

    Args:
        experiment: what to run.
        seeds: 0 … seeds − 1.
        quick: see :class:`Trial`.
        work: keeps the rows of finished seeds; delete it to start over.
        out: gets ``NAME.json``, ``NAME.md`` and ``NAME.png``.
        console: progress, and the table at the end.
        device: where models and engines live.
    """
    trials: dict[int, list[Row]] = {}
    seconds: dict[int, float] = {}
    machines: dict[str, None] = {}
    for seed in range(seeds):
        kept = work / f"seed-{seed}.json"
        if not kept.exists():
            console.print(f"{experiment.name}: seed {seed}", highlight=False)
            directory = work / f"seed-{seed}-{time.time_ns():x}"
            directory.mkdir(parents=True)
            began = time.monotonic()
            rows = experiment.run(Trial(seed, quick, directory, console, device))
            _write(
                kept,
                {
                    "seconds": time.monotonic() - began,
                    "hardware": hardware(device),
                    "rows": [asdict(row) for row in rows],
                },
            )
        loaded = json.loads(kept.read_text())
        trials[seed] = [Row(**row) for row in loaded["rows"]]
        seconds[seed] = float(loaded["seconds"])
        machines[loaded["hardware"]] = None
    results = Results(experiment.name, quick, trials, seconds, list(machines))
    out.mkdir(parents=True, exist_ok=True)
    _write(out / f"{experiment.name}.json", to_dict(experiment, results))
    (out / f"{experiment.name}.md").write_text(markdown(experiment, results), encoding="utf-8")
    if experiment.plot is not None:
        experiment.plot(results, out / f"{experiment.name}.png")
    return results


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(file)


def command(experiment: Experiment, results: Results) -> str:
    """The command line that makes these results."""
    quick = " --quick" if results.quick else ""
    return f"posteriori experiment {experiment.name} --seeds {len(results.trials)}{quick}"


def to_dict(experiment: Experiment, results: Results) -> dict[str, Any]:
    """JSON-ready: every row of every seed, the summary and the claims."""
    summary = results.summary()
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "command": command(experiment, results),
        "hardware": results.hardware,
        "seconds": {str(seed): round(value, 1) for seed, value in results.seconds.items()},
        "summary": {
            method: {metric: asdict(cell) for metric, cell in cells.items()}
            for method, cells in summary.items()
        },
        "claims": [asdict(claim) for claim in experiment.claims(summary)],
        "rows": {str(seed): [asdict(row) for row in rows] for seed, rows in results.trials.items()},
    }


def _text(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return "–"
    value = "∞" if math.isinf(cell.mean) else format(cell.mean, column.format)
    if cell.seeds < 2 or math.isinf(cell.mean):
        return value
    return f"{value} ± {format(cell.deviation, column.format)}"


def _table(experiment: Experiment, summary: Summary) -> list[list[str]]:
    return [
        [method, *(_text(cells.get(column.metric), column) for column in experiment.columns)]
        for method, cells in summary.items()
    ]


def markdown(experiment: Experiment, results: Results) -> str:
    """Table, claims and the command that makes them."""
    summary = results.summary()
    header = ["method", *(column.heading for column in experiment.columns)]
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (header, ["---"] * len(header), *_table(experiment, summary))
    ]
    minutes = np.mean(list(results.seconds.values())) / 60
    lines += [
        "",
        f"`{command(experiment, results)}`: mean ± standard deviation over {len(results.trials)} "
        f"seed{'s' * (len(results.trials) > 1)}, {minutes:.1f} minutes a seed on {' and '.join(results.hardware)}.",
        "",
        *(
            f"- {'holds' if claim.holds else '**does not hold**'}: {claim.text}"
            for claim in experiment.claims(summary)
        ),
    ]
    return "\n".join(lines) + "\n"


def show(experiment: Experiment, results: Results, console: Console) -> None:
    """Print table and claims."""
    summary = results.summary()
    table = Table(
        "method", *(column.heading for column in experiment.columns), title=experiment.title
    )
    for row in _table(experiment, summary):
        table.add_row(*row)
    console.print(table)
    for claim in experiment.claims(summary):
        verdict = "[green]holds[/green]" if claim.holds else "[red]does not hold[/red]"
        console.print(f"{verdict}: {claim.text}", highlight=False)
