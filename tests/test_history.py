"""What the driver remembers of a long run."""

from __future__ import annotations

from itertools import pairwise

from posteriori.commands.history import History


def test_a_short_run_is_remembered_whole() -> None:
    history = History(kept=10)
    rows = [{"step": float(k), "loss": 1.0 / (k + 1)} for k in range(8)]
    rows[4]["tv/x"] = 0.5
    rows[6]["bound"] = -1.0
    for row in rows:
        history.add(row)
    assert history.rows() == rows
    assert history.count == 8
    assert history.last == {"step": 7.0, "loss": 1 / 8, "tv/x": 0.5, "bound": -1.0}


def test_a_long_one_is_thinned_evenly_and_keeps_every_bound() -> None:
    history = History(kept=100)
    for k in range(12_345):
        row = {"step": float(k), "loss": float(k)}
        if k % 5 == 0:
            row["tv/x"] = 0.1
        if k % 4_000 == 0:
            row["bound"] = -1.0
        history.add(row)
    rows = history.rows()
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert [row["step"] for row in rows if "bound" in row] == [0, 4_000, 8_000, 12_000]
    for kind in (
        [row["step"] for row in rows if "tv/x" in row and "bound" not in row],
        [row["step"] for row in rows if "tv/x" not in row],
    ):
        assert 50 <= len(kind) <= 100
        gaps = [b - a for a, b in pairwise(kind)]
        assert max(gaps) <= 2 * min(gaps)
        assert kind[-1] > 12_345 - 2 * max(gaps)
    assert history.count == 12_345 and history.last["step"] == 12_344
