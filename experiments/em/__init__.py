"""Variational EM: latent chains of reasoning, and a reward LM that learns from them.

Sums of three digits with their answers and no rationale. E steps train q(Z | X) to the chains that
explain the answer; M steps fit p(Z, Y | X) of the reward LM to chains drawn from q. Evidences log p(Y | X) are
exact, over all hundred chains of an X, on the questions trained on and on new ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.em.plot import draw
from experiments.harness import Claim, Column, Experiment, Row, Summary, Trial
from posteriori.commands.local import train_locally
from posteriori.config import RunConfig, parse
from posteriori.fitted_reward import FittedReward
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior
from posteriori.pocket.arithmetic import correct_answer, expression
from posteriori.problems import Problem, build_problems
from posteriori.seams import Prompt

ROUNDS = 3
CHAINS = 100
UNSEEN_NATS = 0.005
"""What chains too rare to be among the 2,048 drawn may take from the bound: its standard error knows nothing
of them once q has all but found the posterior."""


def questions(seed: int, count: int) -> list[tuple[str, str]]:
    """Distinct sums of three digits whose results, the first included, are digits; with answers."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        numbers = [rng.randrange(1, 10) for _ in range(3)]
        signs = [rng.choice("+-") for _ in range(2)]
        first, last = correct_answer(numbers[:2], signs[:1]), correct_answer(numbers, signs)
        if 0 <= first <= 9 and 0 <= last <= 9:
            found[expression(numbers, signs)] = str(last)
    return list(found.items())


def config(trial: Trial) -> RunConfig:
    """The run file of one training."""
    every = [{"x": x, "y": y} for x, y in questions(trial.seed, 4 if trial.quick else 32)]
    half = len(every) // 2
    return parse(
        {
            "run": "em",
            "seed": trial.seed,
            "problems": [
                {
                    "name": "chain",
                    "kind": "python",
                    "factory": "experiments.em.problem:chains",
                    "prompts": every[:half],
                    "test_prompts": every[half:],
                    "max_tokens": 11,
                }
            ],
            "sampling": {"engine": "transformers", "group_size": 16, "groups_in_flight": 4},
            "learner": {
                "steps": (2 if trial.quick else 60) * (ROUNDS + 1),
                "learning_rate": 0.003,
                "warmup_steps": 5,
                "prompts_per_step": 4,
                "trajectories_per_prompt": 16,
                "evaluate_every_steps": 10_000,
            },
            "em": {
                "rounds": ROUNDS,
                "objective": "joint",
                "m_steps": 2 if trial.quick else 15,
                "learning_rate": 0.001,
                "chains_per_prompt": 8 if trial.quick else 128,
            },
            "oracle_max_strings": 0,
        }
    )


def run(trial: Trial) -> list[Row]:
    """One seed: a row for every round."""
    settings = config(trial)
    lm = trial.load(settings.model)
    history = train_locally(settings, directory=trial.directory / "run", lm=lm).history
    return round_rows(settings, lm, trial.directory / "run", [r for r in history if "bound" in r])


def round_rows(
    settings: RunConfig, lm: LanguageModel, directory: Path, bounds: Sequence[Mapping[str, float]]
) -> list[Row]:
    """Exact evidences under the adapter of every round beside the bound at the end of its E step."""
    (problem,) = build_problems(settings, lm)
    fitted = FittedReward([problem], "joint")
    rows = []
    for done, bound in enumerate(bounds):
        if done:
            fitted.use(directory / "reward" / f"step-{done:08d}", done)
        trained = _evidence(problem, problem.prompts)
        metrics = {
            "evidence": trained,
            "evidence_new": _evidence(problem, problem.test_prompts),
            "bound": bound["bound"],
            "bound_se": bound["bound_se"],
            "gap": trained - bound["bound"],
        }
        rows.append(Row(f"{done} M steps", metrics))
    return rows


def _evidence(problem: Problem, prompts: Sequence[Prompt]) -> float:
    """log p(Y | X) = log Σ_Z p(Z, Y | X), mean over X's; nats."""
    return float(
        np.mean(
            [
                enumerate_posterior(
                    problem.name, prompt, problem.moves(prompt), problem.reward, CHAINS
                ).log_z
                for prompt in prompts
            ]
        )
    )


def claims(summary: Summary) -> list[Claim]:
    """The evidence rises, the bound stays below it and ends near it, and new questions profit."""
    rows = [summary[f"{done} M steps"] for done in range(ROUNDS + 1)]
    return [
        Claim(
            "the evidence rises with every M step",
            all(a["evidence"].mean < b["evidence"].mean for a, b in pairwise(rows)),
        ),
        Claim(
            f"the bound is nowhere above the evidence (by more than 3 standard errors and {UNSEEN_NATS})",
            all(
                r["bound"].mean <= r["evidence"].mean + 3 * r["bound_se"].mean + UNSEEN_NATS
                for r in rows
            ),
        ),
        Claim("and at the end at most 0.1 nats below it", rows[-1]["gap"].mean <= 0.1),
        Claim(
            "the LM explains the answers to new questions better, too",
            rows[-1]["evidence_new"].mean > rows[0]["evidence_new"].mean,
        ),
    ]


EXPERIMENT = Experiment(
    name="em",
    title="Variational EM on latent chains: nats, mean over X",
    columns=(
        Column("evidence", "log p(Y given X), exact"),
        Column("bound", "bound"),
        Column("bound_se", "its standard error"),
        Column("gap", "KL(q‖σ)"),
        Column("evidence_new", "log p(Y given X), new X"),
    ),
    run=run,
    claims=claims,
    plot=draw,
)
