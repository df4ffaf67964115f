"""What a run's driver remembers of its steps, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping

ROWS_KEPT = 2000
"""Of each kind: more points than a curve is wide, and about 2 KB each."""

Row = dict[str, float]


class History:
    """Metrics of the steps of a run, thinned as it grows long.

    Of steps, and by themselves of evaluations, at most ``kept`` rows stay: when there are more, every
    other one goes, and of later ones every second, fourth … is taken. The bounds of variational EM,
    a few a run, all stay.

    Attributes:
        count: rows that were added.
        last: the newest value of every metric.
    """

    def __init__(self, kept: int = ROWS_KEPT) -> None:
        self.count = 0
        self.last: Row = {}
        self._steps = _Thinned(kept)
        self._evaluations = _Thinned(kept)
        self._rounds: list[tuple[int, Row]] = []

    def add(self, row: Mapping[str, float]) -> None:
        """Remember the metrics of a step, ``step`` among them."""
        own = {sys.intern(key): value for key, value in row.items()}
        self.last.update(own)
        if "bound" in own:
            self._rounds.append((self.count, own))
        elif any(key.startswith("tv/") for key in own):
            self._evaluations.add(self.count, own)
        else:
            self._steps.add(self.count, own)
        self.count += 1

    def rows(self) -> list[Row]:
        """What is remembered, in the order it came."""
        found = [*self._steps.rows, *self._evaluations.rows, *self._rounds]
        return [row for _, row in sorted(found, key=lambda item: item[0])]


class _Thinned:
    """Rows at equal distances among all that were added."""

    def __init__(self, kept: int) -> None:
        self.rows: list[tuple[int, Row]] = []
        self._kept = kept
        self._stride = 1
        self._seen = 0

    def add(self, place: int, row: Row) -> None:
        if self._seen % self._stride == 0:
            self.rows.append((place, row))
            if len(self.rows) > self._kept:
                self.rows = self.rows[::2]
                self._stride *= 2
        self._seen += 1
