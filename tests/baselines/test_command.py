"""``posteriori baseline``: options, distances, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

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
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"run": "r", "model": str(tiny_lm_path), "problems": [problem]}))
    return str(file)


def test_prints_samples_budget_and_distance(run_file: str) -> None:
    options = ["--option", "particles=64", "-n", "200", "--json"]
    result = CliRunner().invoke(app, ["baseline", "smc", run_file, *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert len(found["samples"]) == 200
    assert found["exact"]["strings"] == 3 + 9
    assert found["exact"]["total_variation"] < 0.15
    assert abs(found["log_z"] - found["exact"]["log_z"]) < 5 * found["log_z_standard_error"] + 0.01
    assert found["budget"]["token_forwards"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no-such"], "No baseline 'no-such'"),
        (["smc", "--option", "particle=3"], "no option 'particle'"),
        (["smc", "--option", "particles=2.5"], "whole number"),
        (["smc", "--option", "particles"], "not name=number"),
        (["smc", "--problem", "x"], "no problem 'x'"),
        (["rejection", "--option", "log_bound=-99"], "above the bound"),
    ],
)
def test_mistakes(run_file: str, arguments: list[str], message: str) -> None:
    name, *rest = arguments
    result = CliRunner().invoke(app, ["baseline", name, run_file, *rest])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
