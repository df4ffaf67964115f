"""The harness sums up over seeds, goes on where it stopped, and reports claims that fail."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from experiments import harness
from experiments.harness import Claim, Column, Experiment, Row
from posteriori.errors import UserError


def experiment(calls, fail_at=None):
    def run(trial):
        if trial.seed == fail_at:
            raise RuntimeError("power cut")
        calls.append(trial.seed)
        assert trial.directory.is_dir()
        return [Row("ours", {"kl": 1.0 + trial.seed}), Row("theirs", {"kl": math.inf, "extra": 2})]

    return Experiment(
        name="sample",
        title="A sample",
        columns=(Column("kl", "KL, nats", ".2f"), Column("extra", "extra", ".0f")),
        run=run,
        claims=lambda summary: [
            Claim("ours is finite", math.isfinite(summary["ours"]["kl"].mean)),
            Claim("theirs is finite", math.isfinite(summary["theirs"]["kl"].mean)),
        ],
    )


def test_mean_and_deviation_over_seeds_stand_in_table_and_json(tmp_path):
    found = harness.run(
        experiment([]), seeds=3, quick=False, work=tmp_path / "w", out=tmp_path / "o",
        console=Console(quiet=True),
    )  # fmt: skip
    cell = found.summary()["ours"]["kl"]
    assert (cell.mean, cell.deviation, cell.seeds) == (2.0, 1.0, 3)
    text = (tmp_path / "o" / "sample.md").read_text()
    assert "| ours | 2.00 ± 1.00 | – |" in text
    assert "| theirs | ∞ | 2 ± 0 |" in text
    assert "- holds: ours is finite" in text
    assert "- **does not hold**: theirs is finite" in text
    report = json.loads((tmp_path / "o" / "sample.json").read_text())
    assert report["command"] == "posteriori experiment sample --seeds 3"
    assert [row["metrics"]["kl"] for row in report["rows"]["1"]][:1] == [2.0]


def test_finished_seeds_are_not_run_again(tmp_path):
    places = {"work": tmp_path / "w", "out": tmp_path / "o", "console": Console(quiet=True)}
    calls = []
    with pytest.raises(RuntimeError, match="power cut"):
        harness.run(experiment(calls, fail_at=1), seeds=2, quick=True, **places)
    harness.run(experiment(calls), seeds=2, quick=True, **places)
    assert calls == [0, 1]


def test_an_unknown_experiment_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="No experiment 'alchemy'"):
        harness.find("alchemy")
