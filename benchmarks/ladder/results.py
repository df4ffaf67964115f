"""What the ladder has measured so far: one JSON file for each row, an entry for each method and seed.

An entry that is there is not measured again, so rows, methods and seeds can be added over days. Delete an
entry to have it measured anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import hardware


@dataclass(frozen=True)
class Entry:
    """One method on one row under one seed.

    Attributes:
        metrics: by name; nats where they are divergences.
        seconds: of wall clock, on a machine that may have been shared.
        cpu_seconds: of all threads.
    """

    method: str
    seed: int
    metrics: Mapping[str, float]
    seconds: float
    cpu_seconds: float
    hardware: str


class Results:
    """The entries of one row.

    Args:
        file: read if it exists; read again and rewritten as a whole at every ``add``.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries = self._read()

    def _read(self) -> list[Entry]:
        if not self.file.exists():
            return []
        return [Entry(**row) for row in json.loads(self.file.read_text(encoding="utf-8"))]

    def has(self, method: str, seed: int) -> bool:
        """Is this entry there?"""
        return any(e.method == method and e.seed == seed for e in self.entries)

    def add(
        self,
        method: str,
        seed: int,
        metrics: Mapping[str, float],
        seconds: float,
        cpu_seconds: float,
    ) -> None:
        """Keep an entry, at once, beside what other processes have kept meanwhile."""
        self.entries = self._read()
        rounded = {name: _rounded(value) for name, value in metrics.items()}
        self.entries.append(
            Entry(method, seed, rounded, round(seconds, 1), round(cpu_seconds, 1), hardware())
        )
        rows: list[dict[str, Any]] = [asdict(entry) for entry in self.entries]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".tmp")
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.rename(self.file)

    def methods(self) -> list[str]:
        """Methods measured, q first, then as they came."""
        found = dict.fromkeys(entry.method for entry in self.entries)
        return sorted(found, key=lambda method: method != "q")

    def values(self, method: str, metric: str) -> list[float]:
        """A metric over the seeds of a method that have it."""
        return [
            float(entry.metrics[metric])
            for entry in self.entries
            if entry.method == method and metric in entry.metrics
        ]

    def mean(self, method: str, metric: str) -> float | None:
        """Mean over seeds, or None."""
        values = self.values(method, metric)
        return float(np.mean(values)) if values else None


def _rounded(value: float) -> float:
    """Six significant digits: the files are read by people too."""
    return float(f"{value:.6g}") if math.isfinite(value) else value
