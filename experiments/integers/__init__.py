"""Random integers: uniform over 0 to 99 from a base LM that has favourites (paper, section 2).

Every figure is exact: q of the hundred valid Z's is computed, not counted. (The paper's 9.75e-5 is a
histogram of 512,000 samples, whose sampling floor is 99 / (2 · 512,000) = 9.67e-5.)
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.harness import Claim, Column, Experiment, Summary
from experiments.integers.plot import draw
from experiments.integers.trial import BASE, GFN, PPO, run

RATIO = 100.0
LEAST_VALIDITY = 0.99


def claims(summary: Summary) -> Sequence[Claim]:
    """The policy's KL is two orders of magnitude below the base LM's and PPO's, and it writes integers."""
    found = []
    for metric, which in (("kl", "KL(uniform‖q given validity)"), ("kl_all", "KL(uniform‖q)")):
        ours = summary[GFN][metric].mean
        for other in (BASE, PPO):
            ratio = summary[other][metric].mean / ours
            found.append(
                Claim(
                    f"{which} of {GFN} at least {RATIO:g}x below {other}: {ratio:.0f}x",
                    ratio >= RATIO,
                )
            )
    valid = summary[GFN]["validity"].mean
    share = f"{GFN} writes integers in at least {LEAST_VALIDITY:.0%} of its draws: {valid:.2%}"
    return [*found, Claim(share, valid >= LEAST_VALIDITY)]


EXPERIMENT = Experiment(
    name="integers",
    title="Uniform over 0 to 99",
    columns=(
        Column("kl", "KL(uniform‖q given validity)", ".5f"),
        Column("validity", "validity", ".4f"),
        Column("kl_all", "KL(uniform‖q)", ".5f"),
        Column("least", "least likely number, 1 = uniform", ".3f"),
        Column("most", "most likely number", ".3f"),
        Column("reward_evaluations", "reward evaluations", ",.0f"),
        Column("seconds", "s", ".0f"),
    ),
    run=run,
    claims=claims,
    plot=draw,
)
