"""Evidence and bound, round by round."""

from __future__ import annotations

from pathlib import Path

from experiments.harness import Results

LINES = {
    "evidence": ("log p(Y | X)", "-"),
    "bound": ("bound", "--"),
    "evidence_new": ("log p(Y | X), new X", ":"),
}


def draw(results: Results, file: Path) -> None:
    """Means over seeds, bars of one standard deviation."""
    from matplotlib.figure import Figure

    rounds = list(results.summary().values())
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for metric, (label, style) in LINES.items():
        cells = [metrics[metric] for metrics in rounds]
        means, bars = [cell.mean for cell in cells], [cell.deviation for cell in cells]
        axes.errorbar(range(len(cells)), means, bars, linestyle=style, capsize=2, label=label)
    axes.set_xlabel("M steps")
    axes.set_ylabel("nats, mean over X")
    axes.set_xticks(range(len(rounds)))
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
