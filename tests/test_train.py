"""`posteriori train` for real: Ray, Redis, vLLM and the learner's own process; what users see.

The tiny model keeps it short, and where the engine is not the point the transformers one does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = pytest.mark.ray

ALPHABET = [" cat", " dog", " ran", " slept"]


def run_file(directory: Path, model: Path, engine: str = "transformers", **learner: object) -> Path:
    settings = {
        "run": "t",
        "model": str(model),
        "output_directory": str(directory / "runs"),
        "problems": [
            {
                "name": "sharp",
                "kind": "tempered",
                "prompts": [{"x": " the big"}],
                "alphabet": ALPHABET,
                "stop": ".",
                "max_tokens": 3,
                "temperature": 0.7,
            }
        ],
        "sampling": {"engine": engine, "group_size": 16, "groups_in_flight": 4},
        "learner": {
            "steps": 60,
            "prompts_per_step": 1,
            "trajectories_per_prompt": 32,
            "learning_rate": 0.003,
            "evaluate_every_steps": 10,
            "checkpoint_every_steps": 10,
            **learner,
        },
    }
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def posteriori(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "posteriori.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output, _ = process.communicate(timeout=seconds)
    return output


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Output up to the line that matches; fails if the process ends before."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"the run ended without {pattern!r}:\n{seen}")


def below(pid: int, name: str) -> list[psutil.Process]:
    """Ray processes of a run whose title contains ``name``."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_train_sample_verify(engine: str, tiny_lm_path: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path, tiny_lm_path, engine)
    train = posteriori("train", str(file), cwd=tmp_path)
    output = finish(train)
    assert train.returncode == 0, output
    run = tmp_path / "runs" / "t"
    report = json.loads((run / "report.json").read_text())
    (assessment,) = report["assessments"]
    exact = assessment["exact"]
    assert exact["strings"] == 4 + 16 + 64
    assert exact["base"]["total_variation"] > 3 * exact["policy"]["total_variation"]
    assert exact["policy"]["total_variation"] < 0.1
    assert (
        abs(assessment["policy"]["log_z"] - exact["log_z"])
        < 5 * assessment["policy"]["log_z_se"] + 0.02
    )
    assert report["summary"]["mismatch_max"] < 1e-3
    assert set(report["summary"]["idle"]) == {"learner", "actors"}
    markdown = (run / "report.md").read_text()
    for image in re.findall(r"\(plots/(.*?)\)", markdown):
        assert (run / "plots" / image).read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").rglob("events.out.*"))

    sample = posteriori("sample", str(run), "-n", "16", "--json", cwd=tmp_path)
    output = finish(sample)
    assert sample.returncode == 0, output
    found = json.loads(output[output.index("{") :])
    assert len(found["samples"]) == 16
    for row in found["samples"]:
        assert row["log_weight"] == pytest.approx(row["log_reward"] - row["log_q"])
    assert sum(row["weight"] for row in found["samples"]) == pytest.approx(1.0)

    verify = posteriori("verify", str(run), "--draws", "512", cwd=tmp_path)
    output = finish(verify)
    assert verify.returncode == 0, output
    assert f"{exact['policy']['total_variation']:.3f}" in output

    again = posteriori("train", str(file), cwd=tmp_path)
    output = finish(again)
    assert again.returncode == 2
    assert "already holds a run" in output and "--resume" in output


def test_an_actor_is_replaced_then_ctrl_c_then_resume(tiny_lm_path: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path, tiny_lm_path, steps=100_000, evaluate_every_steps=5)
    train = posteriori("train", str(file), cwd=tmp_path)
    read_until(train, r"step 10 ")
    (actor,) = below(train.pid, "Rollout")
    actor.kill()
    deadline = time.monotonic() + 120
    while not [process for process in below(train.pid, "Rollout") if process.pid != actor.pid]:
        assert time.monotonic() < deadline, "the actor was not replaced"
        time.sleep(0.5)
    # The replaced actor samples: the limiter lets the learner go no further on old trajectories.
    read_until(train, r"step 100 ")
    os.kill(train.pid, signal.SIGINT)
    output = finish(train)
    assert train.returncode == 0, output
    run = tmp_path / "runs" / "t"
    before = json.loads((run / "report.json").read_text())["summary"]
    assert before["stopped_early"] and before["steps"] >= 100
    assert before["restarts"] == 1

    # More steps than the limiter allows on what was stored before.
    after = resume_for(file, before["steps"] + 200)
    assert after["steps"] == before["steps"] + 200
    assert after["adapter_version"] > before["adapter_version"]
    # Most are duplicates: there are only 84 strings.
    assert received(after) > received(before)


def received(summary: dict[str, Any]) -> int:
    counters = summary["counters"]
    return int(counters["trajectories inserted"] + counters["trajectories merged"])


def resume_for(file: Path, steps: int) -> dict[str, Any]:
    """Continue the run of a run file to a given step; the summary of its report."""
    settings = yaml.safe_load(file.read_text())
    settings["learner"]["steps"] = steps
    file.write_text(yaml.safe_dump(settings))
    process = posteriori("train", str(file), "--resume", cwd=file.parent)
    output = finish(process)
    assert process.returncode == 0, output
    report = file.parent / "runs" / "t" / "report.json"
    summary: dict[str, Any] = json.loads(report.read_text())["summary"]
    return summary


def test_kill_9_of_everything_then_resume(tiny_lm_path: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path, tiny_lm_path, steps=100_000, evaluate_every_steps=5)
    train = posteriori("train", str(file), cwd=tmp_path)
    read_until(train, r"step 60 ")
    family = [psutil.Process(train.pid), *psutil.Process(train.pid).children(recursive=True)]
    for process in family:
        if process.is_running():
            process.kill()
    finish(train)
    run = tmp_path / "runs" / "t"
    assert not (run / "report.json").exists()
    summary = resume_for(file, 120)
    assert summary["steps"] == 120
    # Resumed from a checkpoint, not from the start, and 60 steps of 32 had been drawn before the kill.
    assert summary["counters"]["trajectories drawn"] >= (60 + 120 - 60) * 32


def test_the_first_cause_of_a_bad_reward_reaches_the_user(
    tiny_lm_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad_reward.py").write_text(
        "from posteriori.problems import Problem, build_problem\n"
        "class Bad:\n"
        "    version = 0\n"
        "    def log_reward(self, prompt, sequences):\n"
        "        return [[float('nan')] * (len(z) + 1) for z in sequences]\n"
        "def make(config, lm):\n"
        "    plain = build_problem(config.model_copy(update={'kind': 'tempered', 'factory': None}), lm)\n"
        "    return Problem(config.name, plain.prompts, Bad(), lm, plain.policy_prompt, plain.legal_moves)\n"
    )
    file = run_file(tmp_path, tiny_lm_path)
    settings = yaml.safe_load(file.read_text())
    settings["oracle_max_strings"] = 0  # let a rollout actor be the one that finds it
    settings["problems"][0] |= {"kind": "python", "factory": "bad_reward:make", "temperature": 1.0}
    file.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "posteriori.cli", "train", str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = finish(process)
    assert process.returncode == 2, output
    assert "'sharp'" in output and "nan" in output and "Traceback" not in output
    assert (tmp_path / "runs" / "t" / "run.yaml").exists()
