"""The ladder's results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.ladder.ground import HELD_OUT
from benchmarks.ladder.results import Results
from benchmarks.ladder.rivals import break_even, particle_equivalent
from benchmarks.ladder.rows import Row

COLUMNS = (
    ("kl_posterior_q", "KL(σ‖q)"),
    ("kl_q_posterior", "KL(q‖σ)"),
    ("total_variation", "TV"),
    ("ess_fraction", "ESS"),
    (HELD_OUT + "kl_posterior_q", "held-out KL(σ‖q)"),
    ("validity", "valid"),
    ("log_z gap", "log Z gap"),
    ("failed", "runs without a particle"),
    ("length_error", "length error"),
    ("forwards per sample", "forwards a sample"),
    ("training trajectories", "reward evaluations"),
)


def markdown(rows: Sequence[tuple[Row, Results]]) -> str:
    """Verdicts and tables of the rows that have results; the others are named."""
    parts = []
    for row, results in rows:
        if results.entries:
            parts += [f"### {row.name}: {row.title}", "", *_verdicts(row, results), ""]
            if row.kind != "log_z":
                parts += [*_table(results), "", *_worth(results)]
    missing = [row.name for row, results in rows if not results.entries]
    if missing:
        parts += [f"Not measured yet: {', '.join(missing)}.", ""]
    return "\n".join(parts)


def _verdicts(row: Row, results: Results) -> list[str]:
    lines = []
    seeds = sum(entry.method == "q" for entry in results.entries)
    for target in row.targets:
        values = results.values("q", target.metric)
        if not values:
            continue
        mean = float(np.mean(values))
        verdict = "met" if target.met(mean) else "**missed**"
        lines.append(
            f"- {target}: {_with_spread(values)}, {verdict} ({seeds} seed{'s' * (seeds > 1)})"
        )
    if row.kind == "log_z":
        joint = results.values("joint", "coverage")
        if joint:
            width = results.mean("joint", "half_width")
            lines.append(
                f"- above from joint draws: coverage {_with_spread(joint)}, half_width {width:.3f}"
            )
    return lines


def _table(results: Results) -> list[str]:
    present = [
        (metric, title)
        for metric, title in COLUMNS
        if any(results.values(method, metric) for method in results.methods())
    ]
    lines = [
        "| method | " + " | ".join(title for _, title in present) + " | CPU min |",
        "|---|" + "---:|" * (len(present) + 1),
    ]
    for method in results.methods():
        cells = [_cell(results.values(method, metric)) for metric, _ in present]
        minutes = np.mean([e.cpu_seconds for e in results.entries if e.method == method]) / 60
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {minutes:.1f} |")
    return lines


def _worth(results: Results) -> list[str]:
    """Particle equivalent and break-even of q, where SMC was measured beside it."""
    gap_of_q = results.mean("q", "kl_q_posterior")
    if gap_of_q is None:
        return []
    gaps = {}
    for method in results.methods():
        gap = results.mean(method, "log_z gap")
        if gap is not None and method.startswith("smc-"):
            gaps[int(method.removeprefix("smc-"))] = gap
    base = results.mean("base", "kl_q_posterior")
    if base is not None and np.isfinite(base):
        gaps[1] = base
    equivalent = particle_equivalent(gap_of_q, gaps)
    more, less = "", ""
    if equivalent is None:
        # A base LM alone, one particle, says nothing of filters.
        if max(gaps, default=1) == 1 or gap_of_q >= min(gaps.values()):
            return []
        equivalent = float(max(gaps))
        more, less = "more than ", "at most "
    lines = [f"- particle equivalent: {more}{equivalent:.0f}"]
    training, ours = (
        results.mean("q", "training forwards"),
        results.mean("q", "forwards per sample"),
    )
    if training is not None and ours is not None:
        queries = break_even(training, ours, equivalent * ours)
        if queries is not None:
            lines.append(f"- break-even with such a filter: {less}{queries:,.0f} samples")
    return [*lines, ""]


def _with_spread(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {float(np.std(values, ddof=1)):.3f}"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = float(np.mean(values))
    return f"{mean:,.0f}" if abs(mean) >= 100 else _with_spread(values)
