"""``posteriori sample``: draws from a trained policy with log q, log R and weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from actors.weighted import WeightedSamples, draw
from posteriori import metrics
from posteriori.calls import SamplesOptions
from posteriori.commands.choice import choose_prompt
from posteriori.commands.loaded_run import POLICY_VERSION, LoadedRun
from posteriori.commands.run_directory import RunDirectory
from posteriori.problems import Problem, build_problem
from posteriori.seams import Prompt

if TYPE_CHECKING:
    from posteriori.client import Client

Correction = Literal["none", "snis", "smc"]


def sample(
    directory: RunDirectory,
    n: int,
    *,
    problem_name: str | None,
    prompt_id: str | None,
    fields: dict[str, str],
    seed: int,
    engine_kind: str | None,
    base: bool,
) -> dict[str, Any]:
    """Draw n samples; JSON-ready.

    Args:
        directory: of the run.
        n: draws.
        problem_name: None: the run's first problem.
        prompt_id: None: its first X, unless ``fields`` gives a new one.
        fields: a new X (and Y, …).
        seed: of the draws.
        engine_kind: ``vllm`` or ``transformers``; None: the run's.
        base: draw from the base LM and not from the policy.

    Raises:
        UserError: unknown run, problem or prompt.
    """
    run = LoadedRun.load(directory)
    problem = run.problem(problem_name)
    if fields:
        section = next(p for p in run.config.problems if p.name == problem.name)
        problem = build_problem(
            section.model_copy(update={"prompts": (fields,), "test_prompts": None, "gold": None}),
            run.base,
        )
        prompt = problem.prompts[0]
    else:
        prompt = choose_prompt(problem, prompt_id)
    engine = run.engine(engine_kind, [problem])
    try:
        version = 0 if base else POLICY_VERSION
        samples = draw(engine, problem, prompt, n, adapter_version=version, seed=seed)
    finally:
        engine.close()
    return _to_dict(problem, prompt, samples)


def sample_remotely(
    client: Client,
    run: str,
    n: int,
    *,
    problem_name: str | None,
    prompt_id: str | None,
    fields: dict[str, str],
    seed: int,
    base: bool,
    version: int | None,
    correction: Correction,
) -> dict[str, Any]:
    """As :func:`sample`, drawn by a service; numbers that it does not know are None.

    Raises:
        UserError: the service refuses, or does not answer.
    """
    asked = SamplesOptions(run=run, n=n, seed=seed, fields=fields, correction=correction)
    if problem_name is not None:
        asked["problem"] = problem_name
    if prompt_id is not None:
        asked["prompt"] = prompt_id
    if base or version is not None:
        asked["version"] = 0 if base else version or 0
    return client.samples(**asked).model_dump()


def _to_dict(problem: Problem, prompt: Prompt, samples: WeightedSamples) -> dict[str, Any]:
    estimate = metrics.log_z_estimate(samples.log_weights)
    return {
        "problem": problem.name,
        "prompt": prompt.id,
        "fields": dict(prompt.fields),
        "samples": [
            {
                "text": problem.text(tokens),
                "tokens": tokens,
                "log_q": float(log_q),
                "log_reward": float(log_reward),
                "log_weight": float(log_reward - log_q),
                "weight": float(weight),
            }
            for tokens, log_q, log_reward, weight in zip(
                samples.tokens, samples.log_q, samples.log_reward, samples.weights, strict=True
            )
        ],
        "summary": {
            "n": len(samples),
            "ess": metrics.effective_sample_size(samples.log_weights),
            "ess_fraction": metrics.ess_fraction(samples.log_weights),
            "log_z": estimate.value,
            "log_z_se": estimate.standard_error,
            "pareto_k": metrics.pareto_k(samples.log_weights),
            "unique_fraction": metrics.unique_fraction([tuple(z) for z in samples.tokens]),
        },
    }


def show(found: dict[str, Any], console: Console, as_json: bool) -> None:
    """Print samples as a table, or as JSON."""
    if as_json:
        console.print_json(json.dumps(found, ensure_ascii=False))
        return
    for name, text in found["fields"].items():
        console.print(f"[dim]{name}:[/dim] {text}", highlight=False)
    table = Table("Z", "log q", "log R", "log w", "weight")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["samples"]:
        table.add_row(
            row["text"],
            _shown(row["log_q"]),
            _shown(row["log_reward"]),
            _shown(row["log_weight"]),
            _shown(row["weight"], 4),
        )
    console.print(table)
    summary = found["summary"]
    console.print(
        f"log Ẑ {_shown(summary['log_z'])} ± {_shown(summary['log_z_se'])} · "
        f"ESS {_shown(summary['ess'], 1)} of {summary['n']} · k̂ {_shown(summary['pareto_k'], 2)} · "
        f"unique {_shown(summary['unique_fraction'], 2)}",
        highlight=False,
    )
    for warning in found.get("warnings", ()):
        console.print(f"[yellow]{warning['message']}[/yellow]", highlight=False)


def _shown(number: float | None, digits: int = 3) -> str:
    return "–" if number is None else f"{number:.{digits}f}"
