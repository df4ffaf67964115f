"""Variational EM for real: Ray, Redis, the learner's own process, rollout actors that follow its M steps."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import yaml

from experiments.em import UNSEEN_NATS
from posteriori.commands.loaded_run import LoadedRun
from posteriori.commands.run_directory import RunDirectory
from tests.test_train import ALPHABET, finish, posteriori, read_until, run_file

pytestmark = pytest.mark.ray


def em_file(directory: Path, model: Path) -> Path:
    file = run_file(directory, model, checkpoint_every_steps=5, evaluate_every_steps=5)
    settings = yaml.safe_load(file.read_text())
    settings["problems"] = [
        {
            "name": "why",
            "kind": "reasoning",
            "prompts": [{"x": " the big", "y": " sat on"}],
            "alphabet": ALPHABET,
            "stop": ".",
            "max_tokens": 2,
        }
    ]
    settings["learner"]["steps"] = 90
    # Close enough together that actors meet both rewards while they sample.
    settings["replay"] = {"slack_trajectories": 256}
    settings["em"] = {"rounds": 2, "m_steps": 5, "lora_rank": 8, "learning_rate": 1e-3}
    file.write_text(yaml.safe_dump(settings))
    return file


def test_em_run_killed_after_its_first_m_step_ends_where_it_should(
    tiny_lm_path: Path, tmp_path: Path
) -> None:
    file = em_file(tmp_path, tiny_lm_path)
    train = posteriori("train", str(file), cwd=tmp_path)
    read_until(train, r"step (35|40) ")  # the first M step comes after step 30
    for process in [psutil.Process(train.pid), *psutil.Process(train.pid).children(recursive=True)]:
        if process.is_running():
            process.kill()
    finish(train)
    resumed = posteriori("train", str(file), "--resume", cwd=tmp_path)
    output = finish(resumed)
    assert resumed.returncode == 0, output
    directory = RunDirectory(tmp_path / "runs" / "t")
    report = json.loads((directory.path / "report.json").read_text())
    rounds = {row["em_round"]: row for row in report["em"] if "em_round" in row}
    assert set(rounds) == {1, 2}
    for row in rounds.values():
        assert row["bound_after"] > row["bound"]
    end = report["em"][-1]
    assert "em_round" not in end and end["bound"] > rounds[1]["bound"] + 1
    (assessment,) = report["assessments"]
    exact = assessment["exact"]
    # Assessed under the reward of the last M step, which the policy was fitted to.
    assert exact["policy"]["total_variation"] < 0.1
    # Where q is nearly the posterior, chains that are unlikely and weigh little are in none of the draws.
    assert end["bound"] <= exact["log_z"] + 4 * end["bound_se"] + UNSEEN_NATS
    assert end["bound"] > exact["log_z"] - 0.1
    run = LoadedRun.load(directory)
    assert run.problems[0].reward.version >= 2
    assert "## Variational EM" in (directory.path / "report.md").read_text()
