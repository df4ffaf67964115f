"""The learner's half of the performance benchmarks runs and writes sane JSON; no test looks at a time."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, memory
from benchmarks.objective_cost import double_loop, forward_backward
from learner.objectives import subtb


def run(name: str, out: Path) -> dict[str, Any]:
    """What ``python -m benchmarks.NAME --quick`` writes."""
    module = importlib.import_module(f"benchmarks.{name}")
    measure.main(name, module.__doc__, module.measure, ["--quick", "--out", str(out)])
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("reward_cost", ["≤ 0.3", "≤ 0.3", "≤ 0.3", None, "≤ 0.7", None]),
        ("learner_efficiency", ["≤ 1.1", None, "≥ 0.95"]),
        ("objective_cost", ["≤ 0.01", "≤ 0.01", "≤ 0.02"]),
        ("memory", ["≤ 1.3", "≤ 1.3"]),
    ],
)
def test_quick(name: str, targets: list[str | None], tmp_path: Path) -> None:
    found = run(name, tmp_path / "found.json")
    assert found["benchmark"] == name and found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == str(torch.__version__)
    assert [row["target"] for row in found["rows"]] == targets
    for row in found["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high < math.inf
        assert row["met"] is None or isinstance(row["met"], bool)


def test_pairs_are_taken_in_turn() -> None:
    order: list[str] = []
    row = measure.in_turn(
        "row", lambda: order.append("a"), lambda: order.append("b"), pairs=3, calls=(2, 1)
    )
    assert "".join(order) == "ab" + "aab" + "baa" + "aab"
    assert len(row.pairs) == len(row.cpu_pairs) == 3


def test_a_target_says_whether_it_is_met() -> None:
    assert measure.Target(0.3).met(0.3) and not measure.Target(0.3).met(0.31)
    least = measure.Target(0.95, "at least")
    assert least.met(0.95) and not least.met(0.94) and str(least) == "≥ 0.95"
    rows = [
        measure.Row("bytes", [0.5], least),
        measure.Row("for the record", [1.0, 3.0, 2.0], cpu_pairs=[4.0]),
    ]
    assert measure.table(measure.Report(rows)).splitlines()[2:] == [
        "| bytes | 0.5 |  |  | ≥ 0.95 | **missed** |",
        "| for the record | 2 | 1.5–2.5 | 4 |  |  |",
    ]


def test_the_double_loop_is_the_objective() -> None:
    values = torch.randn((3, 7), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 0.8):
        loss = subtb(values, torch.ones_like(values, dtype=torch.bool), factor)
        torch.testing.assert_close(loss, double_loop(values, factor))
    gradient = forward_backward(lambda d: double_loop(d, 1.0), values)
    assert gradient.abs().sum() > 0 and values.grad is None


def test_shared_storage_is_counted_once() -> None:
    base = torch.zeros(100)
    assert memory.size([base, base[:10], base.view(10, 10), torch.zeros(5)]) == 4 * 105


def test_what_autograd_keeps_is_counted() -> None:
    model = torch.nn.Linear(8, 4, bias=False)
    kept = memory.Kept(model)
    rows = torch.randn(16, 8)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        model(rows).square().sum().backward()
    assert kept.total == 4 * (16 * 8 + 16 * 4)  # the rows, and what is squared; not the weights
