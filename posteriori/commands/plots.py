"""Plots of a report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from posteriori.oracle.cases import Case

mpl.use("Agg")  # no display on a server
from matplotlib import pyplot as plt

BASE, POLICY, EXACT = "#9a9a9a", "#1f6feb", "#d9480f"

Series = tuple[list[float], list[float]]


def _style(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def series(history: Sequence[Mapping[str, float]], key: str) -> Series:
    """(steps, values) of one metric, where it was recorded and finite."""
    rows = [(row["step"], row[key]) for row in history if key in row and np.isfinite(row[key])]
    return [step for step, _ in rows], [value for _, value in rows]


def curves(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """Loss, learned against exact log Z, TV and staleness over the learner's steps."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    loss, log_z, distance, staleness = axes.flat
    steps, values = series(history, "loss")
    # A group of equal strings has loss 0, which a logarithmic axis cannot show.
    positive = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
    loss.plot(*zip(*positive, strict=True), color=POLICY, linewidth=1)
    loss.set_yscale("log")
    _style(loss, "Loss", "learner step", "loss, nats²")
    names = sorted(
        {key.split("/", 1)[1] for row in history for key in row if key.startswith("tv/")}
    )
    colours = plt.get_cmap("tab10")
    for number, name in enumerate(names):
        colour = colours(number % 10)
        distance.plot(*series(history, f"tv/{name}"), "o-", color=colour, label=name, markersize=3)
        learned = series(history, f"log_z/{name}")
        exact = series(history, f"log_z_exact/{name}")[1]
        log_z.plot(*learned, color=colour, linewidth=1, label=name)
        if exact:
            log_z.axhline(exact[-1], color=colour, linestyle="--", linewidth=1)
    _style(log_z, "log Z, learned (line) and exact (dashed)", "learner step", "nats")
    _style(distance, "Distance from the exact posterior", "learner step", "total variation")
    distance.axhline(0.05, color="#bbbbbb", linestyle=":", linewidth=1)
    distance.set_ylim(bottom=0)
    for axis in (log_z, distance):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    staleness.plot(*series(history, "staleness"), color=POLICY, linewidth=1)
    _style(staleness, "Staleness of the drawn trajectories", "learner step", "adapter versions")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def posterior(
    case: Case, log_q_base: NDArray[np.float64], log_q_policy: NDArray[np.float64], file: Path
) -> None:
    """One exact posterior: q against σ for every string, and the two marginals."""
    exact = case.exact
    figure, (scatter, first, length) = plt.subplots(
        1, 3, figsize=(13, 4.2), constrained_layout=True, width_ratios=[1.15, 1.2, 0.8]
    )
    for log_q, colour, label in ((log_q_base, BASE, "base LM"), (log_q_policy, POLICY, "policy")):
        scatter.scatter(
            exact.log_sigma,
            log_q,
            s=5,
            alpha=0.35,
            color=colour,
            label=label,
            linewidths=0,
            rasterized=True,
        )
    low, high = float(exact.log_sigma.min()), float(exact.log_sigma.max())
    scatter.plot([low, high], [low, high], color=EXACT, linewidth=1, label="q = σ")
    _style(scatter, f"{case.name}: every string", "log σ (exact)", "log q")
    scatter.legend(fontsize=8, frameon=False, markerscale=3)

    texts = [case.problem.text([int(token)]) for token in exact.tree.moves.alphabet] + ["⊤"]
    _bars(
        first,
        texts,
        exact.first_token_marginal(),
        exact.first_token_marginal(log_q_base),
        exact.first_token_marginal(log_q_policy),
    )
    _style(first, "First token", "", "probability")
    first.tick_params(axis="x", rotation=60)
    lengths = np.arange(exact.tree.moves.max_tokens + 1)
    _bars(
        length,
        [str(n) for n in lengths],
        exact.length_marginal(),
        exact.length_marginal(log_q_base),
        exact.length_marginal(log_q_policy),
    )
    _style(length, "Length", "tokens", "probability")
    figure.savefig(file, dpi=130)
    plt.close(figure)


MOST_BARS = 16


def _bars(
    axis: Any,
    labels: Sequence[str],
    exact: NDArray[np.float64],
    base: NDArray[np.float64],
    policy: NDArray[np.float64],
) -> None:
    """Bars side by side; of a large alphabet only the most probable values."""
    shown = np.sort(np.argsort(-exact)[:MOST_BARS])
    shown = shown[(exact[shown] > 0) | (base[shown] > 0)]
    place = np.arange(len(shown))
    for offset, values, colour, label in (
        (-0.27, base, BASE, "base LM"),
        (0.0, policy, POLICY, "policy"),
        (0.27, exact, EXACT, "exact"),
    ):
        axis.bar(place + offset, values[shown], width=0.27, color=colour, label=label)
    axis.set_xticks(place, [labels[i].strip() or repr(labels[i]) for i in shown])
    axis.legend(fontsize=8, frameon=False)
