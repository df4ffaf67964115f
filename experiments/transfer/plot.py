"""The transfer table as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.harness import Results


def draw(results: Results, file: Path, tasks: Sequence[str]) -> None:
    """KL(σ‖q) on new X by trained (rows) and asked (columns), darker is nearer; means over seeds."""
    from matplotlib.figure import Figure

    summary = results.summary()
    kl = np.array([[cells[f"kl_{task}"].mean for task in tasks] for cells in summary.values()])
    figure = Figure(figsize=(6, 0.6 * len(summary) + 1), layout="constrained")
    axes = figure.subplots()
    shown = np.log10(np.maximum(kl, 1e-4))
    axes.imshow(-shown, cmap="Greys", aspect="auto")
    for row, column in np.ndindex(kl.shape):
        dark = shown[row, column] < shown.mean()
        axes.text(
            column, row, f"{kl[row, column]:.3f}", ha="center", color="white" if dark else "black"
        )
    axes.set_xticks(range(len(tasks)), [f"asked for {task}" for task in tasks])
    axes.set_yticks(range(len(summary)), list(summary))
    figure.savefig(file, dpi=110)
