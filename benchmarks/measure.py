"""What all performance benchmarks share: two sides timed in turn, a table of ratios, JSON with machine and versions.

A rate of one machine says nothing about another, and a busy machine says nothing about itself; so what is
reported is a ratio of two things measured in the same run, one after the other, again and again. A benchmark
is a module with ``measure(quick) -> Report`` that calls :func:`main`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from posteriori.doctor import installed_versions

RESULTS = Path("docs/results")


@dataclass(frozen=True)
class Target:
    """What a ratio should be."""

    bound: float
    side: Literal["at most", "at least"] = "at most"

    def met(self, value: float) -> bool:
        """Does ``value`` keep the target?"""
        return value <= self.bound if self.side == "at most" else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.side == 'at most' else '≥'} {self.bound:.3g}"


@dataclass(frozen=True)
class Row:
    """One line of a table: a ratio, from pairs measured in turn.

    Attributes:
        name: what is divided by what.
        pairs: the ratio of each pair; of one where nothing varies, such as bytes.
        target: None: for the record.
        subject: median of the numerator, for the JSON file; seconds unless ``unit`` says otherwise.
        reference: median of the denominator.
        cpu_pairs: as ``pairs``, of this process's CPU seconds, which say more where the machine is busy.
    """

    name: str
    pairs: Sequence[float]
    target: Target | None = None
    subject: float | None = None
    reference: float | None = None
    unit: str = "seconds"
    cpu_pairs: Sequence[float] = ()

    @property
    def median(self) -> float:
        """Of the pairs' ratios."""
        return float(np.median(self.pairs))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        low, high = np.percentile(self.pairs, [25, 75])
        return {
            "name": self.name,
            "median": self.median,
            "quartiles": [float(low), float(high)],
            "pairs": len(self.pairs),
            "target": None if self.target is None else str(self.target),
            "met": None if self.target is None else self.target.met(self.median),
            "median of CPU seconds": float(np.median(self.cpu_pairs)) if self.cpu_pairs else None,
            f"subject {self.unit}": self.subject,
            f"reference {self.unit}": self.reference,
        }


@dataclass(frozen=True)
class Report:
    """A benchmark's rows, and what was measured: sizes, models, threads.

    ``model_flops_utilisation``: of a CUDA device's peak, where it is known.
    """

    rows: Sequence[Row]
    settings: dict[str, Any] = field(default_factory=dict)
    model_flops_utilisation: float | None = None


def seconds(call: Callable[[], object], calls: int = 1) -> tuple[float, float]:
    """Of the clock and of CPU, of one call, mean of ``calls``; what a CUDA device still has to do is waited for."""
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls, (time.process_time() - cpu) / calls


def in_turn(
    name: str,
    subject: Callable[[], object],
    reference: Callable[[], object],
    *,
    pairs: int,
    target: Target | None = None,
    calls: tuple[int, int] = (1, 1),
) -> Row:
    """Time subject ÷ reference, ``pairs`` times in turn; who goes first alternates. One call of each is not counted.

    Args:
        name: of the row.
        calls: of subject and of reference in one timing, for what takes too little time alone.
    """
    sides = ((subject, calls[0]), (reference, calls[1]))
    for call, _ in sides:
        call()
    found = np.zeros((pairs, 2, 2))
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            found[pair, side] = seconds(*sides[side])
    middle = np.median(found, axis=0)
    ratios = found[:, 0] / found[:, 1]
    return Row(
        name,
        ratios[:, 0].tolist(),
        target,
        float(middle[0, 0]),
        float(middle[1, 0]),
        cpu_pairs=ratios[:, 1].tolist(),
    )


def machine() -> dict[str, Any]:
    """Processor, cores, memory, devices."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "processor": names[0] if names else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide speed."""
    return {"python": platform.python_version(), "numpy": np.__version__, **installed_versions()}


def table(report: Report) -> str:
    """As Markdown."""
    lines = ["| | median | quartiles | of CPU time | target | |", "|---|---|---|---|---|---|"]
    for row in report.rows:
        low, high = np.percentile(row.pairs, [25, 75])
        spread = f"{low:.3g}–{high:.3g}" if len(row.pairs) > 1 else ""
        verdict = ""
        if row.target is not None:
            verdict = "met" if row.target.met(row.median) else "**missed**"
        target = "" if row.target is None else str(row.target)
        cpu = f"{np.median(row.cpu_pairs):.3g}" if row.cpu_pairs else ""
        lines.append(f"| {row.name} | {row.median:.3g} | {spread} | {cpu} | {target} | {verdict} |")
    if report.model_flops_utilisation is not None:
        lines.append(f"| model FLOPs utilisation | {report.model_flops_utilisation:.3g} | | | | |")
    return "\n".join(lines)


def document(name: str, report: Report) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "benchmark": name,
        "command": f"python -m benchmarks.{name}",
        "machine": machine(),
        "versions": versions(),
        "settings": {"torch threads": torch.get_num_threads(), **report.settings},
        "rows": [row.document() for row in report.rows],
        "model FLOPs utilisation": report.model_flops_utilisation,
    }


def main(
    name: str,
    description: str,
    measure: Callable[[bool], Report],
    arguments: Sequence[str] | None = None,
) -> None:
    """Command line of a benchmark: measure, print the table, write JSON.

    Args:
        name: of the module in ``benchmarks``.
        measure: takes ``quick``, which says only that everything runs: its figures mean nothing, and are
            written nowhere unless ``--out`` says where.
        arguments: None: those of the process.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="seconds, for a test: figures mean nothing"
    )
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS}/performance-{name}.json")
    options = parser.parse_args(arguments)
    report = measure(options.quick)
    out = options.out or (None if options.quick else RESULTS / f"performance-{name}.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document(name, report), indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    print(table(report))
