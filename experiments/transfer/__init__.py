"""One policy for many posteriors: trained on A, asked for B.

Three posteriors over the same words, told apart by what the policy sees before Z: a sharpened
continuation, an infilling (the policy sees Y first), and a hard constraint. A policy is trained on
each alone, and on all three in one run of as many steps: a third of them for each. Every figure is
exact, on X's held out of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness import Claim, Column, Experiment, Row, Summary, Trial
from experiments.transfer.plot import draw
from posteriori.commands.local import train_locally
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import Case, exact_cases
from posteriori.problems import build_problems

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
THINGS = ("bag", "wallet", "purse", "box")
TRAINED = (("Mia", "wallet"), ("Tom", "box"), ("Ben", "purse"), ("Sara", "bag"))
NEW = (("Emma", "box"), ("Leo", "wallet"))

TASKS = ("tempered", "infilling", "constrained")
STEPS = 200


def problem(task: str) -> dict[str, Any]:
    """The section of the run file for one of ``TASKS``; names are those of the tasks."""
    begins = {"tempered": "looked for the", "infilling": "found a", "constrained": "saw a"}[task]

    def prompts(who: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        return [
            {"x": f"{name} {begins}", "y": f" at the park. The {thing} was full of money."}
            for name, thing in who
        ]

    section: dict[str, Any] = {
        "name": task,
        "kind": task,
        "prompts": prompts(TRAINED),
        "test_prompts": prompts(NEW),
        "alphabet": [f" {word}" for word in (*COLOURS, *THINGS)],
        "max_tokens": 3,
    }
    if task == "tempered":
        return section | {"stop": ".", "temperature": 0.5}
    if task == "infilling":
        return section | {"policy_prompt": "{y} {x}"}
    rare = f"( \\w+)* ({'|'.join(COLOURS[-3:])})( \\w+)*"
    return section | {"stop": " on", "constraint": {"regex": rare}}


def config(tasks: Sequence[str], steps: int, seed: int) -> RunConfig:
    """The run file of one policy."""
    return parse(
        {
            "run": "-".join(tasks),
            "seed": seed,
            "problems": [problem(task) for task in tasks],
            "sampling": {
                "engine": "transformers",
                "group_size": 32,
                "groups_in_flight": 8,
                "base_share": 0.1,
                "tempered_share": 0.1,
                "uniform_share": 0.0,
            },
            "replay": {"samples_per_insert": 4, "recent_share": 0.3, "prioritised_share": 0.6},
            "learner": {
                "steps": steps,
                "learning_rate": 0.003,
                "prompts_per_step": 4,
                "trajectories_per_prompt": 64,
                "huber_delta_nats": 1,
                "evaluate_every_steps": 10_000,
            },
            "oracle_max_strings": 0,  # the learner is not to spend its time on it
        }
    )


def run(trial: Trial) -> list[Row]:
    """One seed: the base LM and four policies on the new X's of all three problems."""
    everything = config(TASKS, 1, trial.seed)
    lm = trial.load(everything.model)
    cases = exact_cases(build_problems(everything, lm), 5000)
    steps = 4 if trial.quick else STEPS
    rows = [Row("base LM", _metrics(cases, lm))]
    trainings: list[tuple[str, tuple[str, ...], int]] = [(task, (task,), steps) for task in TASKS]
    trainings.append(("all three", TASKS, steps))
    for name, tasks, length in trainings:
        settings = config(tasks, length, trial.seed)
        directory = trial.directory / name.replace(" ", "-")
        trained = train_locally(settings, directory=directory, lm=lm)
        rows.append(Row(f"trained on {name}", _metrics(cases, trained.policy())))
        trial.console.print(f"{rows[-1].method}: {trained.seconds:.0f} s", highlight=False)
    return rows


def _metrics(cases: Sequence[Case], sampler: LanguageModel) -> dict[str, float]:
    """Exact distances: mean over the new X's of each problem, and over its trained ones."""
    found: dict[str, list[float]] = {}
    for case in cases:
        fidelity = case.fidelity(sampler)
        which = "" if case.held_out else "_trained"
        found.setdefault(f"kl_{case.problem.name}{which}", []).append(fidelity.kl_posterior_q)
        found.setdefault(f"tv_{case.problem.name}{which}", []).append(fidelity.total_variation)
    return {key: float(np.mean(values)) for key, values in found.items()}


def claims(summary: Summary) -> list[Claim]:
    """What the table has to show: each learns its own, and one policy can hold all three."""

    def kl(method: str, task: str) -> float:
        return summary[method][f"kl_{task}"].mean

    many = "trained on all three"
    return [
        Claim(
            "the policy of each posterior is at least 5x nearer to it than the base LM, on new X",
            all(5 * kl(f"trained on {task}", task) <= kl("base LM", task) for task in TASKS),
        ),
        Claim(
            "each is nearer to its own posterior than the policies of the two others",
            all(
                kl(f"trained on {task}", task) < kl(f"trained on {other}", task)
                for task in TASKS
                for other in TASKS
                if other != task
            ),
        ),
        Claim(
            "one policy of all three, with a third of the steps for each, is at least 3x nearer to "
            "each than the base LM",
            all(3 * kl(many, task) <= kl("base LM", task) for task in TASKS),
        ),
    ]


EXPERIMENT = Experiment(
    name="transfer",
    title="Trained on A, asked for B: KL(σ‖q) and TV on new X",
    columns=tuple(
        Column(f"{metric}_{task}", f"{heading} {task}")
        for task in TASKS
        for metric, heading in (("kl", "KL"), ("tv", "TV"))
    ),
    run=run,
    claims=claims,
    plot=lambda results, file: draw(results, file, TASKS),
)
