"""The benchmark of the replay buffer runs and writes what it is to write; never a figure's size."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import measure, replay_buffer


def test_it_measures_every_size(tmp_path: Path) -> None:
    out = tmp_path / "replay.json"
    measure.main("replay_buffer", "-", replay_buffer.measure, ["--quick", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    names = [row["name"] for row in found["rows"]]
    for size in replay_buffer.SIZES_TOKENS:
        assert sum(name.endswith(size) for name in names) == 3
    assert all(row["median"] > 0 for row in found["rows"])
    assert (
        found["settings"]["payload bytes"]["4 kB"]
        < 4096
        < found["settings"]["payload bytes"]["4.1 kB"]
    )
