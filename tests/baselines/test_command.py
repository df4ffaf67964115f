"""``posteriori baseline``: options, distances, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from posteriori.cli import app
from posteriori.errors import UserError


@pytest.fixture
def run_file(tiny_lm_path: Path, tmp_path: Path) -> str:
    problem = {
        "name": "middle",
        "kind": "infilling",
        "prompts": [{"x": " the cat", "y": " on the mat"}],
        "alphabet": [" dog", " sat", " ran"],
        "stop": ".",
        "max_tokens": 2,
    }
    other = problem | {"name": "other", "gold": {"template": " ran"}}
    run = {"run": "r", "model": str(tiny_lm_path), "problems": [problem, other]}
    learner = {
        "steps": 30,
        "learning_rate": 0.01,
        "prompts_per_step": 2,
        "trajectories_per_prompt": 16,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run | {"learner": learner}))
    return str(file)


def found(run_file: str, name: str, *options: str) -> dict[str, Any]:
    """What a baseline prints as JSON."""
    result = CliRunner().invoke(app, ["baseline", name, run_file, "-n", "400", "--json", *options])
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.output)
    return printed


def mean_log_reward(printed: dict[str, Any]) -> float:
    return float(np.mean([row["log_reward"] for row in printed["samples"]]))


def test_prints_samples_budget_and_distance(run_file: str) -> None:
    printed = found(run_file, "smc", "--option", "particles=64")
    assert len(printed["samples"]) == 400
    exact = printed["exact"]
    assert exact["strings"] == 3 + 9
    assert exact["total_variation"] < 0.15
    assert abs(printed["log_z"] - exact["log_z"]) < 5 * printed["log_z_standard_error"] + 0.01
    assert printed["budget"]["token_forwards"] > 0
    assert printed["training"] is None


@pytest.mark.parametrize("name", ["sft-resampled", "ppo-posterior"])
def test_trained_towards_the_posterior(run_file: str, name: str, tmp_path: Path) -> None:
    untrained = found(run_file, "masking")["exact"]["total_variation"]
    trained = found(run_file, name, "--out", str(tmp_path / "adapter"))
    assert trained["exact"]["total_variation"] < 0.5 * untrained
    spent = trained["training"]
    assert 0 < spent["reward_evaluations"] <= 30 * 2 * 16
    assert spent["token_forwards"] > 0
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["peft_type"] == "LORA"


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_trained_towards_reward(run_file: str, name: str) -> None:
    trained = found(run_file, name, "--option", "reward_evaluations=640")
    assert trained["training"]["reward_evaluations"] == 640
    assert mean_log_reward(trained) > mean_log_reward(found(run_file, "masking"))


def test_trained_on_the_gold_of_all_problems(run_file: str) -> None:
    def share(printed: dict[str, Any]) -> float:
        return float(np.mean([row["text"] == " ran" for row in printed["samples"]]))

    options = ("--option", "passes=640", "--problem", "other")
    trained = found(run_file, "sft", *options)
    assert trained["training"]["reward_evaluations"] == 0
    assert share(trained) > 0.5 > share(found(run_file, "masking"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no-such"], "No baseline 'no-such'"),
        (["smc", "--option", "particle=3"], "no option 'particle'"),
        (["smc", "--option", "particles=2.5"], "whole number"),
        (["smc", "--option", "particles"], "not name=number"),
        (["smc", "--problem", "x"], "no problem 'x'"),
        (["rejection", "--option", "log_bound=-99"], "above the bound"),
        (["smc", "--out", "adapter"], "trains no adapter"),
        (["ppo", "--out", "."], "exists"),
        (["ppo", "--option", "learning_rate=-1"], "learning_rate is -1"),
        (["grpo", "--option", "reward_evaluations=0"], "reward_evaluations is 0"),
        (["ppo", "--option", "epochs=0"], "epochs is 0"),
        (["rloo", "--option", "epochs=2"], "RLOO has no importance ratio"),
    ],
)
def test_mistakes(run_file: str, arguments: list[str], message: str) -> None:
    name, *rest = arguments
    result = CliRunner().invoke(app, ["baseline", name, run_file, *rest])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
