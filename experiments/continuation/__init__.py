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


def dominated_by(summary: Summary, name: str, rivals: Sequence[str]) -> list[str]:
    """Rivals better than ``name`` in one of likelihood and diversity and no worse in the other."""
    mine = summary[name]
    found = []
    for rival in rivals:
        likelihood = summary[rival]["max_log_p"].mean - mine["max_log_p"].mean
        diversity = summary[rival]["diversity"].mean - mine["diversity"].mean
        no_worse = likelihood >= -LIKELIHOOD_TIE_NATS and diversity >= -DIVERSITY_TIE
        better = likelihood > LIKELIHOOD_TIE_NATS or diversity > DIVERSITY_TIE
        if no_worse and better:
            found.append(rival)
    return found


def claims(summary: Summary) -> Sequence[Claim]:
    """The paper's Figure 3, and the exact divergences behind it."""
    policies = {gfn(temperature) for temperature in TEMPERATURES}
    equal = [name for name in summary if name not in policies | {BEAM_5, DIVERSE_5}]
    found = []
    for temperature in TEMPERATURES:
        name, local = gfn(temperature), tempering(temperature)
        better = dominated_by(summary, name, equal)
        beaten = f" (but: {', '.join(better)})" if better else ""
        found.append(
            Claim(
                f"{name} is on or above the likelihood-diversity frontier at equal samples{beaten}",
                not better,
            )
        )
        for metric, words in (
            ("exact_kl", "exact KL(σ‖q), one plot"),
            ("kl_q_posterior", "KL(q‖σ), all tokens"),
        ):
            found.append(
                Claim(
                    f"{words}: {name} below {local}",
                    summary[name][metric].mean < summary[local][metric].mean,
                )
            )
    return found


def plot(results: Results, path: Path) -> None:
    """Likelihood of the best sample against diversity, a point for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = results.summary()
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    policies = {gfn(temperature) for temperature in TEMPERATURES}
    for name, cells in summary.items():
        mine = name in policies
        x, y = cells["max_log_p"], cells["diversity"]
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=x.deviation,
            yerr=y.deviation,
            fmt="o" if mine else "s",
            color="#c0392b" if mine else "#3b6ea5",
            markersize=6,
            elinewidth=0.8,
        )
        axes.annotate(name, (x.mean, y.mean), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xlabel("log p(Z⊤ | X) of the best of 20 samples, nats")
    axes.set_ylabel("diversity: 1 − mean cosine")
    axes.margins(x=0.25, y=0.12)
    figure.savefig(path, dpi=120)


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
