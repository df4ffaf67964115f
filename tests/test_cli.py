"""The command line: a user's mistake is one paragraph with the fix, exit status 2, and nothing is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posteriori import cli
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import load
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from tests.tiny import write_tiny_lm

PROBLEM = {
    "name": "p",
    "kind": "tempered",
    "prompts": [{"x": " the cat"}],
    "alphabet": [" sat", " ran"],
    "stop": ".",
    "max_tokens": 3,
}


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_lm_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Call the command line on a run file with changes; returns (status, output, errors)."""
    monkeypatch.setenv("COLUMNS", "1000")

    def call(
        *arguments: str, problem: dict[str, Any] | None = None, **settings: Any
    ) -> tuple[int, str, str]:
        config = {
            "run": "r",
            "model": str(tiny_lm_path),
            "output_directory": str(tmp_path / "runs"),
            "problems": [{**PROBLEM, **(problem or {})}],
            "sampling": {"engine": "transformers"},
            **settings,
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config))
        filled = [argument.replace("FILE", str(file)) for argument in arguments]
        monkeypatch.setattr("sys.argv", ["posteriori", *filled])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_dry_run_prints_the_resolved_file_and_starts_nothing(run: Any, tmp_path: Path) -> None:
    status, output, _ = run("train", "FILE", "--dry-run")
    assert status == 0
    assert "capacity_bytes: 268435456" in output  # a default, resolved
    assert "# p: 1 prompts, 0 held out, 0 gold Z, up to 14 legal Z, exact oracle" in " ".join(
        output.split()
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode", [["--dry-run"], []])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learner": {"lerning_rate": 1}}, "`learning_rate`"),
        ({"model": "/no/such/model"}, "Cannot load a causal language model from '/no/such/model'"),
        ({"problem": {"alphabet": [" sat", " sta"]}}, "Alphabet entry ' sta' is not one token"),
        ({"problem": {"max_tokens": 400}}, "the context of"),
        ({"problem": {"min_tokens": 9}}, "min_tokens (9) is greater than max_tokens (3)"),
        ({"learner": {"lora_rank": 7}}, "nearest rank it serves is 8"),
        ({"learner": {"lora_targets": ["lm_head"]}}, "lm_head"),
        ({"problem": {"prompts": "nowhere.jsonl"}}, "Cannot read nowhere.jsonl: No such file"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    run: Any, tmp_path: Path, mode: list[str], changes: dict[str, Any], message: str
) -> None:
    status, _, errors = run("train", "FILE", *mode, **changes)
    assert status == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_redis_that_does_not_answer(run: Any) -> None:
    status, _, errors = run("train", "FILE", replay={"redis_url": "redis://:secret@127.0.0.1:1/0"})
    assert status == 2
    assert "127.0.0.1:1" in errors and "does not answer" in errors
    assert "secret" not in errors


@pytest.mark.slow
def test_output_directory_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, errors = run("train", "FILE", output_directory=str(tmp_path / "file" / "below"))
    assert status == 2
    assert "Cannot write" in errors and "output_directory" in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "no-file"], "Cannot read run file no-file"),
        (["train", "/no/such.yaml"], "Cannot read run file"),
        (["train", "nothing-here", "--resume"], "No run 'nothing-here'"),
        (["sample", "nothing-here"], "No run 'nothing-here'"),
        (["verify", "nothing-here"], "No run 'nothing-here'"),
        (["sample", "nothing-here", "--field", "x"], "has no `=`"),
        (["pretrain", "--out", "somewhere", "--recipe", "huge"], "No recipe 'huge'"),
    ],
)
def test_wrong_arguments(run: Any, arguments: list[str], message: str) -> None:
    status, _, errors = run(*arguments)
    assert status == 2
    assert message in errors


def test_a_run_on_other_weights_is_refused(run: Any, tmp_path: Path, tiny_lm_path: Path) -> None:
    run("train", "FILE", "--dry-run")
    config = load(tmp_path / "run.yaml")
    other = LanguageModel.load(str(write_tiny_lm(tmp_path / "other", seed=1)))
    RunDirectory(config.directory).create(config, other)
    status, _, errors = run("train", str(config.directory), "--resume")
    assert status == 2
    assert "other weights" in errors


def test_a_run_is_not_continued_as_another_one(
    run: Any, tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    run("train", "FILE", "--dry-run")
    config = load(tmp_path / "run.yaml")
    RunDirectory(config.directory).create(config, tiny_lm)
    status, _, errors = run("train", "FILE", "--resume", problem={"max_tokens": 2})
    assert status == 2
    assert "`problems` is not what the run" in errors


@pytest.mark.slow
def test_doctor_reports_as_json(run: Any) -> None:
    status, output, _ = run("doctor", "--json")
    checks = json.loads(output)
    assert status in (0, 1)
    assert checks


def test_a_run_with_another_lookahead_is_refused(
    run: Any, tmp_path: Path, tiny_lm_path: Path
) -> None:
    table, other = tmp_path / "ahead.npz", tmp_path / "other.npz"
    for file, seed in ((table, "0"), (other, "1")):
        assert run("lookahead", "FILE", "--out", str(file), "--draws", "4", "--seed", seed)[0] == 0
    run("train", "FILE", "--dry-run", problem={"lookahead": str(table)})
    config = load(tmp_path / "run.yaml")
    lm = LanguageModel.load(str(tiny_lm_path))
    directory = RunDirectory(config.directory)
    directory.create(config, lm)
    directory.check_base(lm)
    table.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="another lookahead"):
        directory.check_base(lm)
    table.unlink()
    with pytest.raises(UserError, match="bring the file back"):
        directory.check_base(lm)


LATE = {
    "kind": "constrained",
    "constraint": {"contains": [" ran"]},
    "prompts": [{"x": " the cat"}, {"x": " a dog"}],
}


def test_gold_and_lookahead_write_what_a_run_file_takes(run: Any, tmp_path: Path) -> None:
    table, z = tmp_path / "made" / "ahead.npz", tmp_path / "made" / "gold.jsonl"
    status, out, _ = run("lookahead", "FILE", "--out", str(table), "--draws", "8", problem=LATE)
    assert status == 0 and f"problems[].lookahead: {table}" in out
    ahead = {**LATE, "lookahead": str(table)}
    status, out, _ = run(
        *("gold", "FILE", "--out", str(z), "--filters", "2", "--particles", "8"), problem=ahead
    )
    assert status == 0 and "of 2 X's" in out and "a filter" in out
    lines = [json.loads(line) for line in z.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"0", "1"}
    assert all(" ran" in line["z"] for line in lines)
    assert len({(line["id"], line["z"]) for line in lines}) == len(lines)
    status, out, _ = run("train", "FILE", "--dry-run", problem={**ahead, "gold": {"file": str(z)}})
    assert status == 0 and str(table) in out.replace("\n", "") and "gold Z" in out
    for command, file in (("lookahead", table), ("gold", z)):
        status, _, errors = run(command, "FILE", "--out", str(file), problem=LATE)
        assert status == 2 and "exists" in errors
        status, _, errors = run(
            *(command, "FILE", "--out", str(tmp_path / "new"), "--problem", "q"), problem=LATE
        )
        assert status == 2 and "Choose among p" in errors


def test_sharpen_writes_a_model(run: Any, tmp_path: Path, tiny_lm_path: Path) -> None:
    target = tmp_path / "sharp"
    options = ("sharpen", str(tiny_lm_path), "--temperature", "0.5", "--out", str(target))
    status, out, _ = run(*options)
    assert status == 0 and "T = 0.5" in out
    assert LanguageModel.load(str(target)).vocabulary_size > 0
    status, _, errors = run(*options)
    assert status == 2 and str(target) in errors


def test_the_package_is_the_command() -> None:
    command = (sys.executable, "-m", "posteriori", "train", "nowhere.yaml")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Cannot read run file nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr
