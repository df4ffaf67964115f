"""What the objective costs: SubTB ÷ the double loop it stands for, and its share of a learner's step.

    python -m benchmarks.objective_cost

Both sides of the first ratio are forward and backward over 256 trajectories of 512 tokens: the closed form
(λ = 1), the quadratic form (λ < 1), and one term for each pair of prefixes, summed in Python. The double loop
takes the pairs of all trajectories at once, so that what is measured is not an interpreter's loop over 256
trajectories as well; it is run on the first ``LOOP_PREFIXES`` prefixes, and scaled to all by the number of pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.learner_step import QUICK, STEP, Workload
from benchmarks.measure import Report, Row, Target, in_turn, main
from benchmarks.models import models
from learner.objectives import subtb
from posteriori.config import ReplayConfig
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer

TOKENS, BATCH = 512, 256
LAMBDAS = (1.0, 0.9)
LOOP_PREFIXES = 65


def double_loop(values: Tensor, subtb_lambda: float) -> Tensor:
    """Weighted mean of (Dᵢ − Dⱼ)² over all i < j, one pair after the other; [B]."""
    total, weights = values.new_zeros(len(values)), 0.0
    for i, j in combinations(range(values.shape[1]), 2):
        weight = subtb_lambda ** (j - i - 1)
        total = total + weight * (values[:, i] - values[:, j]).square()
        weights += weight
    return total / weights


def forward_backward(loss: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The gradient of the mean loss with respect to D."""
    leaf = values.detach().requires_grad_()
    loss(leaf).mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def pairs_of(prefixes: int) -> int:
    """i < j."""
    return prefixes * (prefixes - 1) // 2


def against_the_loop(quick: bool) -> list[Row]:
    """The forms of ``objectives.subtb`` ÷ the double loop, at λ = 1 and below."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((BATCH, TOKENS + 1), generator=generator, dtype=torch.float64) * 3 - 40
    part = values[:, : 9 if quick else LOOP_PREFIXES]
    scale = pairs_of(values.shape[1]) / pairs_of(part.shape[1])
    rows = []
    for factor in LAMBDAS:

        def closed(d: Tensor, factor: float = factor) -> Tensor:
            return subtb(d, torch.ones_like(d, dtype=torch.bool), factor)

        loop = partial(double_loop, subtb_lambda=factor)
        torch.testing.assert_close(
            forward_backward(closed, part), forward_backward(loop, part), rtol=1e-9, atol=1e-12
        )
        row = in_turn(
            f"SubTB, λ = {factor:g} ÷ double loop",
            partial(forward_backward, closed, values),
            partial(forward_backward, loop, part),
            pairs=2 if quick else 7,
            calls=(1 if quick else 10, 1),
        )
        assert row.reference is not None
        rows.append(
            Row(
                row.name,
                [ratio / scale for ratio in row.pairs],
                Target(0.01),
                row.subject,
                row.reference * scale,
                cpu_pairs=[ratio / scale for ratio in row.cpu_pairs],
            )
        )
    return rows


def share_of_step(quick: bool) -> list[Row]:
    """From log q to the gradient with respect to it ÷ a whole step of the learner."""
    rows = []
    step = QUICK if quick else STEP
    for lm in models(quick):
        with tempfile.TemporaryDirectory() as folder:
            buffer = MemoryBuffer(ReplayConfig(), seed=0)
            work = Workload.of(lm, step, buffer, MemoryAdapters("benchmark"), Path(folder))
            batch = work.detached_batch()
            row = in_turn(
                f"{lm.name}: objective ÷ learner's step",
                partial(work.objective, batch),
                work.step,
                pairs=step.pairs,
                calls=(1 if quick else 10, 1),
                target=Target(0.02),
            )
        rows.append(row)
    return rows


def measure(quick: bool = False) -> Report:
    """All rows."""
    torch.set_num_threads(1)
    settings = {"tokens": TOKENS, "trajectories": BATCH, "prefixes looped over": LOOP_PREFIXES}
    return Report(
        against_the_loop(quick) + share_of_step(quick), settings | {"step": STEP.document()}
    )


if __name__ == "__main__":
    main("objective_cost", __doc__ or "", measure)
