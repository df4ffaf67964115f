"""Our objectives against released torchgfn on bit sequences: ``benchmarks/torchgfn_fixtures.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.objectives import Batch, flow_residuals, losses, subtb

FIXTURES = json.loads((Path(__file__).parents[1] / "fixtures" / "torchgfn.json").read_text())
CASES: list[dict[str, Any]] = FIXTURES["cases"]
STOPPABLE = [case for case in CASES if case["stoppable"]]
SUBTB = [
    pytest.param(case, entry, id=f"{2 ** case['word_size']}-{entry['weighting']}-{entry['lambda']}")
    for case in STOPPABLE
    for entry in case["subtb"]
]

TOLERANCE = 1e-5


def name(case: dict[str, Any]) -> str:
    return f"{2 ** case['word_size']}-words-{'any' if case['stoppable'] else 'full'}-length"


def batch_of(case: dict[str, Any]) -> Batch:
    """The recorded trajectories as one group; ⊤ is illegal where torchgfn masks the exit."""
    lengths = [len(tokens) for tokens in case["tokens"]]
    size, longest = len(lengths), max(lengths)
    log_q = torch.zeros(size, longest, dtype=torch.float64)
    stop = torch.full((size, longest + 1), -torch.inf, dtype=torch.float64)
    reward = stop.clone()
    for row, n in enumerate(lengths):
        log_q[row, :n] = torch.tensor(case["log_q"][row], dtype=torch.float64)
        for i in range(n + 1):
            if case["log_q_stop"][row][i] is not None:
                stop[row, i] = case["log_q_stop"][row][i]
                reward[row, i] = case["log_reward"][row][i]
    return Batch(
        log_q=log_q,
        log_q_stop=stop,
        log_reward=reward,
        stop_legal=stop > -torch.inf,
        lengths=torch.tensor(lengths),
        group=torch.zeros(size, dtype=torch.int64),
        log_z=torch.full((size,), case["log_z"], dtype=torch.float64),
    )


def test_fixtures_hold_both_environments_and_many_lengths() -> None:
    stoppable = [len(tokens) for case in STOPPABLE for tokens in case["tokens"]]
    assert {case["stoppable"] for case in CASES} == {True, False}
    assert len(set(stoppable)) >= 3


@pytest.mark.parametrize("case", CASES, ids=name)
def test_tb_equals_torchgfn(case: dict[str, Any]) -> None:
    found, _ = losses(batch_of(case), "tb")
    expected = torch.tensor(case["tb"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_vargrad_is_torchgfns_log_partition_variance(case: dict[str, Any]) -> None:
    found, _ = losses(batch_of(case), "vargrad")
    assert float(found.mean()) == pytest.approx(
        case["log_partition_variance"], abs=TOLERANCE, rel=0
    )


@pytest.mark.parametrize(("case", "entry"), SUBTB)
def test_subtb_equals_torchgfn(case: dict[str, Any], entry: dict[str, Any]) -> None:
    """Our flow residuals and pair weights give torchgfn's SubTB with log F = r − t.

    torchgfn counts the transition into the sink as a step, so its last state has D equal to that of the
    whole trajectory: a repeated terminal D in ours. ``TB`` weighs the pair of root and sink alone,
    ``ModifiedDB`` the neighbours alone: our λ → 0.
    """
    batch = batch_of(case)
    residuals = flow_residuals(batch)
    for row, expected in enumerate(entry["losses"]):
        length = int(batch.lengths[row])
        values = torch.cat([residuals[row, : length + 1], residuals[row, length : length + 1]])
        values = values[None]
        if entry["weighting"] == "TB":
            values = values[:, [0, -1]]
        discount = 0.0 if entry["weighting"] == "ModifiedDB" else entry["lambda"]
        found = subtb(values, torch.ones_like(values, dtype=torch.bool), discount)
        assert float(found) == pytest.approx(expected, abs=TOLERANCE, rel=0)


@pytest.mark.parametrize("case", STOPPABLE, ids=name)
def test_our_subtb_is_torchgfns_without_the_repeated_end(case: dict[str, Any]) -> None:
    """With n steps torchgfn has (n + 1)(n + 2)/2 equal pairs: ours, and those of the sink, n of them not 0."""
    batch = batch_of(case)
    ours, residuals = losses(batch, "subtb", root="none")
    (theirs,) = [e["losses"] for e in case["subtb"] if e["weighting"] == "equal_within"]
    for row, expected in enumerate(theirs):
        n = int(batch.lengths[row])
        to_end = (residuals[row, :n] - residuals[row, n]).square().sum()
        found = (ours[row] * n * (n + 1) / 2 + to_end) / ((n + 1) * (n + 2) / 2)
        assert float(found) == pytest.approx(expected, abs=TOLERANCE, rel=0)
