"""A policy with a tool is trained to its exact posterior, through engine, buffer and learner."""

from __future__ import annotations

from pathlib import Path

import pytest

from posteriori.commands.local import train_locally
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import exact_cases
from posteriori.problems import build_problems
from tests.tools.parrot import FAILURE, WORDS

STEPS = 200


def run_file(lm: LanguageModel, steps: int) -> RunConfig:
    return parse(
        {
            "run": "parrot",
            "model": lm.name,
            "problems": [
                {
                    "name": "parrot",
                    "kind": "tempered",
                    "temperature": 0.5,
                    "prompts": [{"x": " the", "gold": " cat then dog"}],
                    "gold": {"template": "{gold}"},
                    "alphabet": list(WORDS),
                    "stop": ".",
                    "max_tokens": 3,
                    "tool": {
                        "use": "tests.tools.parrot:Parrot",
                        "failure": FAILURE,
                        "max_output_tokens": 2,
                    },
                }
            ],
            "sampling": {"group_size": 32, "groups_in_flight": 2, "uniform_share": 0.2},
            # The buffer holds every string; most of them are not worth a draw.
            "replay": {"recent_share": 0.3, "prioritised_share": 0.6},
            "learner": {
                "steps": steps,
                "prompts_per_step": 1,
                "trajectories_per_prompt": 64,
                "learning_rate": 0.01,
                "huber_delta_nats": 1,
                "lora_rank": 8,
                "warmup_steps": 10,
                "evaluate_every_steps": steps,
            },
        }
    )


@pytest.mark.slow
def test_a_tool_latent_reaches_its_posterior(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    config = run_file(tiny_lm, STEPS)
    problems = build_problems(config, tiny_lm)
    (case,) = exact_cases(problems, 1000)
    before = case.fidelity(tiny_lm)
    trained = train_locally(config, problems, directory=tmp_path / "run", lm=tiny_lm)
    after = case.fidelity(trained.policy())
    assert before.total_variation > 0.3
    assert after.total_variation <= 0.05
    assert after.kl_posterior_q <= 0.05
    assert trained.counts.tool_calls > trained.counts.tool_failures > 0
    # log q as the engine reported it equals the learner's, tool outputs left out by both.
    assert trained.history[-1]["log_q_mismatch_max"] < 1e-3


def test_gold_is_given_by_its_actions(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    config = run_file(tiny_lm, 2)
    (problem,) = problems = build_problems(config, tiny_lm)
    (actions,) = problem.gold["0"]
    z = problem.moves(problem.prompts[0]).execute(actions)
    assert problem.text(z) == " cat then cat cat dog"
    trained = train_locally(config, problems, directory=tmp_path / "run", lm=tiny_lm)
    assert trained.counts.tool_calls > 0
