"""``posteriori gold``: a file of gold Z's for a run, drawn by particle filters of the base LM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from posteriori.commands.choice import choose_problem, refuse_existing
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.problems.filtered import filtered_gold
from posteriori.problems.gold import tokenised


@dataclass(frozen=True)
class GoldReport:
    """What was written.

    Attributes:
        prompts: X's.
        written: distinct Z's of an X, over all X's.
        left_out: distinct Z's whose text is tokenised otherwise, which a text file cannot hold.
        log_z: log Ẑ, averaged over filters and X's, nats.
        log_z_spread: standard deviation of log Ẑ between an X's filters, averaged over X's; None: one filter.
        token_forwards: of the base LM.
        reward_evaluations: Z's that were scored.
    """

    prompts: int
    written: int
    left_out: int
    log_z: float
    log_z_spread: float | None
    token_forwards: int
    reward_evaluations: int


def draw(
    config: RunConfig,
    out: Path,
    *,
    problem_name: str | None,
    filters: int,
    particles: int,
    seed: int,
    console: Console,
) -> GoldReport:
    """Draw, and write ``out`` as ``problems[].gold.file`` takes it: a line of ``id`` and ``z`` for each distinct Z.

    Raises:
        UserError: no such problem, ``out`` exists, or no Z can be written.
    """
    refuse_existing(out)
    problem, section = choose_problem(config, problem_name, without="gold")

    def progress(done: int) -> None:
        if done % 10 == 0 or done == len(problem.prompts):
            console.print(f"{done} of {len(problem.prompts)} X's", highlight=False)

    found = filtered_gold(
        problem,
        filters=filters,
        particles=particles,
        temperature=section.temperature,
        seed=seed,
        on_prompt=progress,
    )
    lines, left_out = [], 0
    for prompt in problem.prompts:
        for z in sorted({tuple(z) for z in found.draws[prompt.id]}):
            text = problem.text(z)
            try:
                same = tokenised(problem, prompt, text) == list(z)
            except UserError:
                same = False
            left_out += not same
            if same:
                lines.append(json.dumps({"id": prompt.id, "z": text}, ensure_ascii=False))
    if not lines:
        raise UserError(
            f"Problem {problem.name!r}: the text of every Z is tokenised otherwise.",
            "Check that the alphabet's words begin with a space where Z's text has one.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    spreads = [np.std(values, ddof=1) for values in found.log_z.values()] if filters > 1 else []
    return GoldReport(
        prompts=len(problem.prompts),
        written=len(lines),
        left_out=left_out,
        log_z=float(np.mean([np.mean(values) for values in found.log_z.values()])),
        log_z_spread=float(np.mean(spreads)) if spreads else None,
        token_forwards=found.token_forwards,
        reward_evaluations=found.reward_evaluations,
    )


def show(report: GoldReport, out: Path, console: Console) -> None:
    """Print what was written and what it took."""
    spread = f" ± {report.log_z_spread:.3f} a filter" if report.log_z_spread is not None else ""
    parts = [
        f"Wrote {out}: {report.written:,} distinct Z's of {report.prompts} X's.",
        f"log Ẑ {report.log_z:.3f}{spread}",
        f"{report.token_forwards:,} token forwards, {report.reward_evaluations:,} reward evaluations",
    ]
    if report.left_out:
        parts.append(f"{report.left_out:,} Z's left out, whose text is tokenised otherwise")
    console.print("\n".join(parts), highlight=False, soft_wrap=True)
