"""Accuracy by number of labelled items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.harness import Results

CHANCE = 0.5


def draw(results: Results, file: Path, data_sets: Mapping[str, str], sizes: Sequence[int]) -> None:
    """A panel for each data set that there are figures of; means and standard deviations over seeds.

    Args:
        results: accuracies under ``NAME_SIZE``.
        file: a PNG.
        data_sets: name → title.
        sizes: numbers of labelled items; those that were not run are left out.
    """
    from matplotlib.figure import Figure

    summary = results.summary()
    known = {key for cells in summary.values() for key in cells}
    shown = [name for name in data_sets if any(f"{name}_{n}" in known for n in sizes)]
    figure = Figure(figsize=(4.2 * len(shown), 4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, shown, strict=True):
        ran = [n for n in sizes if f"{name}_{n}" in known]
        for place, (method, cells) in enumerate(summary.items()):
            found = [cells[f"{name}_{n}"] for n in ran]
            panel.errorbar(
                # side by side, not one error bar on another
                [k + 0.08 * (place - len(summary) / 2) for k in range(len(ran))],
                [cell.mean for cell in found],
                [cell.deviation for cell in found],
                marker="o",
                capsize=3,
                label=method,
            )
        panel.axhline(CHANCE, color="grey", linewidth=1, linestyle=":")
        panel.set_xticks(range(len(ran)), [str(n) for n in ran])
        panel.set_xlabel("labelled items")
        panel.set_title(data_sets[name])
    panels[0].set_ylabel("accuracy")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", fontsize=8, ncols=3
    )
    figure.savefig(file, dpi=110)
