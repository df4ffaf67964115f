"""A tree of thoughts as Z: sums of three digits, against enumeration of all 6,741 trees of each.

Trained on some questions and asked about others too. Every figure is exact: probabilities are summed
over all trees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.harness import Claim, Column, Experiment, Row, Summary, Trial
from experiments.tree_of_thoughts.plot import draw
from posteriori.commands.local import train_locally
from posteriori.config import RunConfig, parse
from posteriori.oracle.cases import Case, exact_cases
from posteriori.oracle.enumeration import FloatArray, fidelity
from posteriori.problems import build_problems
from posteriori.thoughts import parse as parse_tree

MAX_TOKENS = 38
"""Of the largest tree: two first thoughts with two children each."""

TRAINED = (("3 - 1 + 2", "4"), ("1 + 4 - 2", "3"), ("6 - 2 - 1", "3"), ("4 - 3 + 4", "5"))
NEW = (("2 + 2 - 1", "3"), ("5 - 3 + 2", "4"))


def config(trial: Trial) -> RunConfig:
    """The run file of a seed."""
    few = trial.quick

    def rows(questions: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"x": x, "y": y} for x, y in questions[: 1 if few else None]]

    return parse(
        {
            "run": "tree-of-thoughts",
            "seed": trial.seed,
            "problems": [
                {
                    "name": "tree",
                    "kind": "python",
                    "factory": "experiments.tree_of_thoughts.problem:trees",
                    "prompts": rows(TRAINED),
                    "test_prompts": rows(NEW),
                    "max_tokens": MAX_TOKENS,
                }
            ],
            "sampling": {
                "engine": "transformers",
                "group_size": 32,
                "groups_in_flight": 4,
                # The base LM was never shown a bracket: its trees teach little.
                "base_share": 0.1,
            },
            "learner": {
                "steps": 6 if few else 300,
                "learning_rate": 0.003,
                "prompts_per_step": 2,
                "trajectories_per_prompt": 32,
                "evaluate_every_steps": 10_000,
            },
            # The learner is not to spend its time on the oracle.
            "oracle_max_strings": 0,
        }
    )


def run(trial: Trial) -> list[Row]:
    """One seed: base LM and policy, on the questions trained on and on new ones."""
    from experiments.tree_of_thoughts.problem import marks_of

    settings = config(trial)
    lm = trial.load(settings.model)
    problems = build_problems(settings, lm)
    cases = exact_cases(problems, 20_000)
    policy = train_locally(settings, problems, directory=trial.directory / "run", lm=lm).policy()
    marks = marks_of(lm)
    leaves = {
        case.prompt.id: np.array(
            [
                len(parse_tree(case.exact.tree.tokens(k), marks).leaves)
                for k in range(case.exact.count)
            ]
        )
        for case in cases
    }
    rows = []
    for which, held_out in (("trained", False), ("new", True)):
        chosen = [case for case in cases if case.held_out == held_out]
        for name, sampler in (("base LM", lm), ("policy", policy)):
            scored = [(case, case.log_q(sampler)) for case in chosen]
            rows.append(Row(f"{name}, {which} questions", _metrics(scored, leaves)))
        exact = [(case, case.exact.log_sigma) for case in chosen]
        rows.append(Row(f"posterior, {which} questions", _metrics(exact, leaves)))
    return rows


def _metrics(
    scored: Sequence[tuple[Case, FloatArray]], leaves: dict[str, FloatArray]
) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for case, log_p in scored:
        distance = fidelity(case.exact, log_p)
        p = np.exp(log_p)
        of_leaves = leaves[case.prompt.id]
        values = {
            "tv": distance.total_variation,
            "kl": distance.kl_q_posterior,
            "kl_posterior": distance.kl_posterior_q,
            "ess": distance.ess_fraction,
            "branching": float(p[of_leaves > 1].sum()),
        }
        for key, value in values.items():
            found.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def claims(summary: Summary) -> list[Claim]:
    trained, base = summary["policy, trained questions"], summary["base LM, trained questions"]
    new, new_base = summary["policy, new questions"], summary["base LM, new questions"]
    return [
        Claim("TV at most 0.05 on trained questions", trained["tv"].mean <= 0.05),
        Claim(
            "KL(σ‖q) at least 10x below the masked base LM on trained questions",
            trained["kl_posterior"].mean * 10 <= base["kl_posterior"].mean,
        ),
        Claim(
            "and on new questions", new["kl_posterior"].mean * 10 <= new_base["kl_posterior"].mean
        ),
    ]


EXPERIMENT = Experiment(
    name="tree_of_thoughts",
    title="A tree of thoughts as Z: sums of three digits",
    columns=(
        Column("tv", "TV"),
        Column("kl_posterior", "KL(σ‖q)"),
        Column("kl", "KL(q‖σ)"),
        Column("ess", "ESS/N"),
        Column("branching", "more than one leaf"),
    ),
    run=run,
    claims=claims,
    plot=draw,
)
