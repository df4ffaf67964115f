"""Sums with a calculator of two operands: latent chains found from few gold ones and many answers (paper, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.arithmetic.plot import draw
from experiments.arithmetic.problem import OPERANDS
from experiments.arithmetic.trial import (
    GFN,
    GFN_MISLED,
    PPO,
    PPO_MISLED,
    SFT,
    UNSEEDED,
    run,
)
from experiments.harness import Claim, Column, Experiment, Summary


def claims(summary: Summary) -> Sequence[Claim]:
    """GFN over SFT over PPO for every number of operands, less with more operands, and gold helps."""
    right = {
        method: [summary[method][f"right{k}"].mean for k in OPERANDS]
        for method in (SFT, PPO, GFN, UNSEEDED, PPO_MISLED, GFN_MISLED)
    }
    found = []
    for better, worse in (
        (GFN, SFT),
        (GFN, PPO),
        (SFT, PPO),
        (GFN, UNSEEDED),
        (SFT, PPO_MISLED),
        (GFN_MISLED, PPO_MISLED),
    ):
        pairs = list(zip(right[better], right[worse], strict=True))
        text = ", ".join(f"{100 * a:.1f} > {100 * b:.1f}" for a, b in pairs)
        found.append(
            Claim(
                f"{better} above {worse} at 3, 4, 5 operands: {text}", all(a > b for a, b in pairs)
            )
        )
    for method in (SFT, GFN):
        three, four, five = right[method]
        found.append(
            Claim(f"{method} is right less often with more operands", three >= four >= five)
        )
    return found


EXPERIMENT = Experiment(
    name="arithmetic",
    title="Sums with a calculator",
    columns=(
        *(Column(f"right{k}", f"right, {k} operands", ".3f") for k in OPERANDS),
        Column("valid", "valid chains", ".3f"),
        Column("unparsed", "no answer", ".3f"),
        Column("log_r", "mean log R", ".1f"),
        Column("reward_evaluations", "reward evaluations", ",.0f"),
        Column("seconds", "s", ".0f"),
    ),
    run=run,
    claims=claims,
    plot=draw,
)
