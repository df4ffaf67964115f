"""Distance of base LM and policy from the posterior over trees."""

from __future__ import annotations

from pathlib import Path

from experiments.harness import Results


def draw(results: Results, file: Path) -> None:
    """KL(σ‖q) of every sampler, on a log axis; bars of one standard deviation over seeds."""
    from matplotlib.figure import Figure

    cells = {
        method: metrics["kl_posterior"]
        for method, metrics in results.summary().items()
        if not method.startswith("posterior")
    }
    figure = Figure(figsize=(7, 0.5 * len(cells) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        list(cells),
        [cell.mean for cell in cells.values()],
        xerr=[cell.deviation for cell in cells.values()],
        color="0.6",
    )
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("KL(σ‖q), nats")
    figure.savefig(file, dpi=110)
