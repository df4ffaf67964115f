"""The probability of every number under every method."""

from __future__ import annotations

from pathlib import Path

from experiments.harness import Results


def draw(results: Results, file: Path) -> None:
    """One panel for each method, a line for each seed, and the uniform distribution behind them."""
    from matplotlib.figure import Figure

    methods = list(results.summary())
    figure = Figure(figsize=(10, 1.8 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), 1, sharex=True, squeeze=False)[:, 0]
    for panel, method in zip(panels, methods, strict=True):
        panel.axhline(0.01, color="0.7", linewidth=3)
        for rows in results.trials.values():
            for row in rows:
                if row.method == method:
                    shares = [row.metrics[f"p{number}"] for number in range(100)]
                    panel.plot(shares, linewidth=0.9)
        panel.set_yscale("log")
        panel.set_ylim(1e-4, 1e-1)
        panel.set_title(method, fontsize=10, loc="left")
    panels[-1].set_xlabel("number; grey: uniform")
    figure.savefig(file, dpi=110)
