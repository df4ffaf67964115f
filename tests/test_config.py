"""Run files: round trip, and one clear message for each kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posteriori.config import dump, load, parse
from posteriori.errors import UserError

PROBLEM = {"name": "t", "kind": "tempered", "prompts": [{"x": "hi"}], "max_tokens": 3}
BASE: dict[str, Any] = {"run": "a", "problems": [PROBLEM]}


def test_the_resolved_file_is_the_same_run() -> None:
    config = parse(BASE)
    assert parse(yaml.safe_load(dump(config))) == config


SHIPPED = [
    file
    for room in ("posteriori", "examples", "experiments", "benchmarks")
    for file in sorted(Path(room).rglob("*.yaml"))
]


@pytest.mark.parametrize("file", SHIPPED, ids=str)
def test_a_shipped_run_file_loads_and_its_resolved_form_is_the_same_run(file: Path) -> None:
    config = load(file)
    assert parse(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sed": 1}, "Unknown key `sed`.*`seed`"),
        ({"learner": {"lerning_rate": 1}}, "`learner.lerning_rate`.*`learning_rate`"),
        ({"problems": [{**PROBLEM, "max_tokns": 3}]}, "max_tokns.*`max_tokens`"),
        (
            {"problems": [{**PROBLEM, "kind": "product", "terms": [{"tarjet": "{z}"}]}]},
            "tarjet.*`target`",
        ),
        (
            {"problems": [{**PROBLEM, "min_tokens": 4}]},
            r"min_tokens \(4\) is greater than max_tokens \(3\)",
        ),
        (
            {"learner": {"lora_rank": 12}},
            "lora_rank 12 cannot be served.*nearest rank it serves is 8",
        ),
        ({"learner": {"reward_temperature_start": 2.0}}, "needs anneal_steps"),
        (
            {"learner": {"steps": 10, "anneal_steps": 6, "reward_temperature_start": 2.0}},
            "at most half of steps",
        ),
        ({"sampling": {"base_share": 0.9, "tempered_share": 0.2}}, "more than 1"),
        ({"replay": {"slack_trajectories": 10}}, "wait for each other for ever"),
        ({"run": "Bad Name"}, "`run`"),
        ({"problems": []}, "`problems`"),
        ({"problems": [{**PROBLEM, "kind": "constrained"}]}, "needs a `constraint`"),
        ({"problems": [{**PROBLEM, "kind": "python"}]}, "`factory`"),
        ({"problems": [PROBLEM, PROBLEM]}, "same name"),
    ],
)
def test_a_mistake_gets_one_message_with_the_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({**BASE, **change})


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read run file"):
        load(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [unclosed")
    with pytest.raises(UserError, match="not valid YAML"):
        load(broken)
    broken.write_text("just a string")
    with pytest.raises(UserError, match="not a mapping"):
        load(broken)
