"""Story infilling (paper, section 4.2): the fourth sentence of five, given the others.

Policy prompt, split of the sentences and reward log p(Z, Y | X) are the paper's; stories, reward LM
and base LM are pocket's. SFT learns from few gold middles; the GFlowNet goes on from there by rewards
alone, for X and Y of more stories. SFT on many samples of the posterior has the GFlowNet's optimum, and
no need of its reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.harness import Claim, Column, Experiment, Results, Summary
from experiments.infilling.assess import POSTERIOR
from experiments.infilling.trial import GFN, PROMPTING, SFT_AMPLE, SFT_FEW, run

MEETS = 0.05
"""SFT on ample posterior samples meets the GFlowNet if its consistency is at most this far below."""


def claims(summary: Summary) -> Sequence[Claim]:
    """The paper's order, and what a reviewer asked: SFT has the same optimum."""

    def means(metric: str) -> list[float]:
        return [summary[name][metric].mean for name in (GFN, SFT_FEW, PROMPTING)]

    found = []
    for metric, words in (("consistent", "consistent stories"), ("gleu", "GLEU-4")):
        gfn, sft, prompting = means(metric)
        found.append(Claim(f"{words}: GFlowNet > SFT on few > prompting", gfn > sft > prompting))
    gap = summary[GFN]["consistent"].mean - summary[SFT_AMPLE]["consistent"].mean
    found.append(
        Claim(f"SFT on ample posterior samples meets the GFlowNet (within {MEETS})", gap <= MEETS)
    )
    return found


def plot(results: Results, path: Path) -> None:
    """Consistent stories and GLEU-4 of every method, bars with deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = results.summary()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(summary)[::-1]
    for axes, (metric, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("consistent", "consistent stories"), ("gleu", "GLEU-4")),
        strict=True,
    ):
        cells = [summary[name][metric] for name in names]
        axes.barh(
            names,
            [cell.mean for cell in cells],
            xerr=[cell.deviation for cell in cells],
            color=["#999999" if name == POSTERIOR else "#3b6ea5" for name in names],
        )
        axes.set_xlabel(title)
    figure.savefig(path, dpi=120)


EXPERIMENT = Experiment(
    name="infilling",
    title="Story infilling",
    columns=(
        Column("bleu", "BLEU-4", ".1f"),
        Column("gleu", "GLEU-4", ".1f"),
        Column("bertscore", "BERTScore"),
        Column("consistent", "consistent"),
        Column("rating", "LLM judge", ".2f"),
        Column("log_reward", "log p(Z, Y | X)", ".2f"),
        Column("kl", "KL(q‖σ)", ".2f"),
        Column("ess", "ESS fraction", ".2f"),
        Column("distinct", "distinct", ".2f"),
        Column("evaluations", "reward evaluations", ",.0f"),
    ),
    run=run,
    claims=claims,
    plot=plot,
)
