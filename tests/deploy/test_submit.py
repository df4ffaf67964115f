"""Runs submitted to a real cluster: followed, listed, stopped, resumed; refused where it has no room."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import redis
import yaml

from posteriori.commands.submit import Cluster
from tests.deploy.conftest import Stack, posteriori, run_file, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def client_environment(stack: Stack) -> dict[str, str]:
    """Of somebody at another machine: the cluster's token and nothing else of it."""
    kept = {k: v for k, v in stack.environment.items() if not k.startswith("POSTERIORI_")}
    return kept


def written(folder: Path, content: dict[str, object]) -> Path:
    file = folder / "my-run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_submit_follows_a_run_to_its_report(
    stack: Stack, client_environment: dict[str, str], tiny_lm_path: Path, tmp_path: Path
) -> None:
    content = run_file("sent", tiny_lm_path)
    content["problems"][0]["prompts"] = "data/x.jsonl"  # type: ignore[index]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.jsonl").write_text('{"x": " the big"}\n')
    file = written(tmp_path, content)
    done = posteriori(
        "submit", str(file), "--address", stack.dashboard,
        environment=client_environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "step 4" in done.stdout and "Report:" in done.stdout
    report = json.loads((stack.runs / "sent/report.json").read_text())
    assert report["summary"]["steps"] == 4
    assert report["summary"]["counters"]["trajectories inserted"] > 0
    # Through the stack's Redis, with its password, which is in no log and in no file of the run.
    password = (stack.secrets / "redis_password").read_text()
    server = redis.Redis(port=stack.redis_port, password=password)
    assert server.hlen("posteriori:{sent}:replay:payloads") > 0
    assert password not in done.stdout
    for path in (stack.runs / "sent").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path
    again = posteriori(
        "submit", str(file), "--address", stack.dashboard,
        environment=client_environment, cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 2 and "already holds a run" in again.stdout


def test_list_stop_and_resume(
    stack: Stack, client_environment: dict[str, str], tiny_lm_path: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, run_file("longer", tiny_lm_path, steps=100_000))
    where = ("--address", stack.dashboard)

    def tell(*arguments: str) -> str:
        done = posteriori(*arguments, *where, environment=client_environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        return done.stdout

    tell("submit", str(file), "--detach")
    wait_until(lambda: "step 4" in tell("logs", "longer"), "a step")
    assert re.search(r"longer .*running", tell("runs"))
    twice = posteriori("submit", str(file), *where, environment=client_environment, cwd=tmp_path)
    assert twice.returncode == 2 and "is running" in twice.stdout
    assert re.search(r"longer .*succeeded", tell("stop", "longer"))
    stopped = json.loads((stack.runs / "longer/report.json").read_text())["summary"]
    assert stopped["stopped_early"] and stopped["steps"] >= 4, tell("logs", "longer")

    steps = stopped["steps"] + 2
    file = written(tmp_path, run_file("longer", tiny_lm_path, steps=steps))
    tell("submit", str(file), "--resume")
    resumed = json.loads((stack.runs / "longer/report.json").read_text())["summary"]
    assert resumed["steps"] == steps and not resumed["stopped_early"]


def test_room_is_checked_before_anything_starts(
    stack: Stack, client_environment: dict[str, str], tiny_lm_path: Path, tmp_path: Path
) -> None:
    content = run_file("greedy", tiny_lm_path)
    content["sampling"] |= {"gpus_per_actor": 1.0, "actors": 8}  # type: ignore[operator]
    file = written(tmp_path, content)
    done = posteriori(
        "submit", str(file), "--address", stack.dashboard,
        environment=client_environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "asked for 8 GPUs, the cluster has 0" in done.stdout
    assert not (stack.runs / "greedy").exists()


def test_a_stranger_is_refused(stack: Stack, tiny_lm_path: Path, tmp_path: Path) -> None:
    file = written(tmp_path, run_file("strange", tiny_lm_path))
    environment = {k: v for k, v in stack.environment.items() if "RAY_AUTH" not in k}
    done = posteriori(
        "submit", str(file), "--address", stack.dashboard,
        environment={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 48},
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "RAY_AUTH_TOKEN" in done.stdout and "Traceback" not in done.stdout


def test_nobody_there() -> None:
    from posteriori.errors import UserError

    with pytest.raises(UserError, match="No Ray dashboard answers"):
        Cluster("http://127.0.0.1:9")
