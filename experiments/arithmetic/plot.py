"""Right answers by number of operands."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.arithmetic.problem import OPERANDS
from experiments.harness import Results


def draw(results: Results, file: Path) -> None:
    """Bars with the standard deviation over seeds, one group for each number of operands."""
    from matplotlib.figure import Figure

    cells = {
        method: [row[f"right{k}"] for k in OPERANDS]
        for method, row in results.summary().items()
        if f"right{OPERANDS[0]}" in row
    }
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(cells)
    for place, (method, row) in enumerate(cells.items()):
        panel.bar(
            np.arange(len(OPERANDS)) + place * width - 0.4 + width / 2,
            [cell.mean for cell in row],
            width,
            yerr=[cell.deviation for cell in row],
            label=method,
        )
    panel.set_xticks(range(len(OPERANDS)), [f"{k} operands" for k in OPERANDS])
    panel.set_ylabel("right answers, one draw")
    panel.set_ylim(0, 1)
    figure.legend(loc="outside upper center", fontsize=8, ncols=3)
    figure.savefig(file, dpi=110)
