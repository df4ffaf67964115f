"""Evidence and bound, round by round."""

from __future__ import annotations

from pathlib import Path

from experiments.harness import Results

LINES = {"evidence": "-", "bound": "--", "evidence_new": ":"}


def draw(results: Results, file: Path) -> None:
    """One colour for each objective; means over seeds, bars of one standard deviation."""
    from matplotlib.figure import Figure

    rounds: dict[str, list[str]] = {}
    for method in results.summary():
        rounds.setdefault(method.rsplit(", ", 1)[0], []).append(method)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (objective, methods) in enumerate(rounds.items()):
        for metric, style in LINES.items():
            cells = [results.summary()[method][metric] for method in methods]
            axes.errorbar(
                range(len(cells)),
                [cell.mean for cell in cells],
                [cell.deviation for cell in cells],
                linestyle=style,
                color=f"C{number}",
                capsize=2,
                label=f"{objective}: {metric.replace('_', ', ')}",
            )
    axes.set_xlabel("M steps")
    axes.set_ylabel("nats, mean over X")
    axes.set_xticks(range(max(map(len, rounds.values()))))
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
