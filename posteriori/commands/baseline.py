"""``posteriori baseline``: what one would try instead, on the problems of a run file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from posteriori import metrics
from posteriori.commands.choice import (
    choose_among_all,
    choose_problem,
    choose_prompt,
    refuse_existing,
)
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.oracle.enumeration import ExactPosterior, enumerate_posterior

SHOWN = 16


def baseline(
    name: str,
    config: RunConfig,
    n: int,
    *,
    problem_name: str | None,
    prompt_id: str | None,
    options: dict[str, float],
    seed: int,
    out: Path | None = None,
) -> dict[str, Any]:
    """Run one baseline for one X; JSON-ready.

    One that trains does so on all X's of the whole run file before it is asked for that X.

    Args:
        name: of the baseline.
        config: the run file.
        n: samples.
        problem_name: None: the first.
        prompt_id: None: its first X.
        options: of the method, such as ``particles``.
        seed: of everything random.
        out: new directory for the adapter of one that trains.

    Raises:
        UserError: unknown baseline, option, problem or prompt, the method cannot do it, ``out`` exists or is
            given where nothing is trained.
    """
    from baselines import local
    from baselines.methods import method, with_options
    from baselines.trainers import TRAINERS

    training: dict[str, Any] | None = None
    if name in TRAINERS:
        train = with_options(TRAINERS[name], name, options)
        if out is not None:
            refuse_existing(out)
        problem, problems = choose_among_all(config, problem_name)
        prompt = choose_prompt(problem, prompt_id)
        trained = train(problems, config, seed)
        if out is not None:
            trained.save(out)
        training = asdict(trained.budget) | {
            "seconds": trained.seconds,
            "adapter": None if out is None else str(out),
        }
        draws = local.sample(problem, prompt, n, seed, lm=trained.language_model())
    else:
        run = with_options(method(name), name, options)
        if out is not None:
            raise UserError(
                f"Baseline {name!r} trains no adapter to write to {out}.", "Leave --out away."
            )
        problem, _ = choose_problem(config, problem_name)
        prompt = choose_prompt(problem, prompt_id)
        draws = run(problem, prompt, n, seed)
    found: dict[str, Any] = {
        "baseline": name,
        "problem": problem.name,
        "prompt": prompt.id,
        "fields": dict(prompt.fields),
        "samples": [
            {"text": problem.text(z), "tokens": z, "log_reward": float(r), "weight": float(w)}
            for z, r, w in zip(draws.tokens, draws.log_reward, draws.weights, strict=True)
        ],
        "training": training,
        "budget": asdict(draws.budget),
        "log_z": draws.log_z.value if draws.log_z else None,
        "log_z_standard_error": (
            draws.log_z.standard_error
            if draws.log_z and math.isfinite(draws.log_z.standard_error)
            else None
        ),
        "exact": None,
    }
    moves = problem.moves(prompt)
    if moves.count() <= config.oracle_max_strings:
        exact = enumerate_posterior(
            problem.name, prompt, moves, problem.reward, config.oracle_max_strings
        )
        found["exact"] = _distance(exact, draws.tokens, draws.log_weights, seed)
    return found


def _distance(
    exact: ExactPosterior, tokens: list[list[int]], log_weights: np.ndarray, seed: int
) -> dict[str, float]:
    """TV of the weighted histogram, beside that of as many exact draws, which is not 0 either."""
    index = {tuple(exact.tree.tokens(k)): k for k in range(exact.count)}
    sigma = np.exp(exact.log_sigma)

    def tv(strings: Any, weights: np.ndarray) -> float:
        found = metrics.weighted_marginal(strings, weights, exact.count)
        return metrics.marginal_error(found.probabilities, sigma)

    return {
        "strings": exact.count,
        "log_z": exact.log_z,
        "total_variation": tv([index[tuple(z)] for z in tokens], log_weights),
        "total_variation_of_exact_draws": tv(
            exact.sample(len(tokens), seed), np.zeros(len(tokens))
        ),
    }


def show(found: dict[str, Any], console: Console, as_json: bool) -> None:
    """Print the most weighty distinct samples and the summary, or JSON."""
    if as_json:
        console.print_json(json.dumps(found, ensure_ascii=False))
        return
    merged: dict[str, list[float]] = {}
    for row in found["samples"]:
        merged.setdefault(row["text"], [row["log_reward"], 0.0])[1] += row["weight"]
    table = Table("Z", "log R", "weight")
    ranked = sorted(merged.items(), key=lambda item: -item[1][1])
    for text, (log_reward, weight) in ranked[:SHOWN]:
        table.add_row(text, f"{log_reward:.3f}", f"{weight:.4f}")
    console.print(table)
    budget, log_z, exact = found["budget"], found["log_z"], found["exact"]
    parts = []
    if training := found["training"]:
        parts.append(
            f"trained for {training['seconds']:.0f} s on {training['token_forwards']:,} token forwards and "
            f"{training['reward_evaluations']:,} reward evaluations"
            + (f"; adapter: {training['adapter']}" if training["adapter"] else "")
        )
    parts += [
        f"{len(found['samples'])} samples, {len(merged)} distinct",
        f"{budget['token_forwards']:,} token forwards, {budget['reward_evaluations']:,} reward evaluations",
    ]
    if log_z is not None:
        error = found["log_z_standard_error"]
        parts.append(f"log Ẑ {log_z:.3f}" + (f" ± {error:.3f}" if error is not None else ""))
    if exact:
        parts.append(
            f"exact log Z {exact['log_z']:.3f}, TV {exact['total_variation']:.3f} "
            f"({exact['total_variation_of_exact_draws']:.3f} for as many exact draws)"
        )
    console.print("\n".join(parts), highlight=False)
