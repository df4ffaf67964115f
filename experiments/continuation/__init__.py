"""Sentence continuation (paper, section 4.1): the next sentence, from p(Z⊤ | X)^{1/T}.

What the paper shows in a picture is shown here in numbers too: the likelihood of the best of n samples
against how much the samples differ, and, where all Z can be enumerated, how far each sampler is from the
posterior that a lower temperature means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.continuation.trial import (
    BEAM_5,
    DIVERSE_5,
    TEMPERATURES,
    gfn,
    run,
    tempering,
)
from experiments.harness import Claim, Column, Experiment, Results, Summary

LIKELIHOOD_TIE_NATS = 0.05
DIVERSITY_TIE = 0.01
"""Differences within these are ties: about the deviation between seeds."""


def dominated_by(
    summary: Summary, name: str, rivals: Sequence[str], likelihood: str = "max_log_p"
) -> list[str]:
    """Rivals better than ``name`` in one of likelihood and diversity and no worse in the other.

    Args:
        summary: of the experiment.
        name: a row.
        rivals: other rows.
        likelihood: ``max_log_p`` or ``mean_log_p``.
    """
    mine = summary[name]
    found = []
    for rival in rivals:
        nats = summary[rival][likelihood].mean - mine[likelihood].mean
        diversity = summary[rival]["diversity"].mean - mine["diversity"].mean
        no_worse = nats >= -LIKELIHOOD_TIE_NATS and diversity >= -DIVERSITY_TIE
        if no_worse and (nats > LIKELIHOOD_TIE_NATS or diversity > DIVERSITY_TIE):
            found.append(rival)
    return found


def claims(summary: Summary) -> Sequence[Claim]:
    """The paper's Figure 3, the same with the mean for the maximum, and the divergences behind it."""
    policies = {gfn(temperature) for temperature in TEMPERATURES}
    equal = [name for name in summary if name not in policies | {BEAM_5, DIVERSE_5}]
    found = []
    for temperature in TEMPERATURES:
        name, local = gfn(temperature), tempering(temperature)
        for likelihood, words in (("max_log_p", "max log p"), ("mean_log_p", "mean log p")):
            better = dominated_by(summary, name, equal, likelihood)
            above = f" (above it: {', '.join(better)})" if better else ""
            text = f"{name} is on or above the frontier of {words} and diversity, 20 samples{above}"
            found.append(Claim(text, not better))
        for metric, words in (
            ("exact_kl", "exact KL(σ‖q), one plot"),
            ("kl_q_posterior", "KL(q‖σ), all tokens"),
        ):
            lower = summary[name][metric].mean < summary[local][metric].mean
            found.append(Claim(f"{words}: {name} below {local}", lower))
    return found


def plot(results: Results, path: Path) -> None:
    """Likelihood of 20 samples, the best and the mean, against their diversity; a point a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = results.summary()
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    numbers = {name: str(number) for number, name in enumerate(summary, start=1)}
    for axes, (metric, title) in zip(
        panels, (("max_log_p", "best"), ("mean_log_p", "mean")), strict=True
    ):
        for name, cells in summary.items():
            x, y = cells[metric], cells["diversity"]
            mine = name.startswith("GFlowNet")
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=x.deviation,
                yerr=y.deviation,
                fmt="o" if mine else "s",
                color="#c0392b" if mine else "#3b6ea5",
                markersize=6,
                elinewidth=0.8,
                label=f"{numbers[name]} {name}",
            )
            axes.annotate(
                numbers[name],
                (x.mean, y.mean),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
            )
        axes.set_xlabel(f"log p(Z⊤ | X), {title} of 20 samples, nats")
    panels[0].set_ylabel("diversity: 1 − mean cosine")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


EXPERIMENT = Experiment(
    name="continuation",
    title="Sentence continuation",
    columns=(
        Column("max_log_p", "max log p", ".2f"),
        Column("mean_log_p", "mean log p", ".2f"),
        Column("diversity", "diversity"),
        Column("distinct_2", "distinct-2", ".2f"),
        Column("unique", "unique", ".2f"),
        Column("token_forwards", "tokens a sample", ".0f"),
        Column("kl_q_posterior", "KL(q‖σ)", ".2f"),
        Column("exact_kl", "exact KL(σ‖q)"),
        Column("exact_tv", "exact TV"),
    ),
    run=run,
    claims=claims,
    plot=plot,
)
