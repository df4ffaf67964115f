"""A real `posteriori train` to do harm to: driver, Ray, rollout actors, learner and Redis, each a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from posteriori.errors import StorageUnreachable, UserError
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import running_address
from tests.faults.instruments import ENVIRONMENT

ROOT = Path(__file__).parents[2]
RUN = "harmed"
PROBLEM = "words"
DEADLINE_SECONDS = 400.0
"""Of one wait: on an idle machine they take seconds, on a busy one importing torch takes minutes."""
RAY_IS_SLOW = "node timed out during startup"
"""Ray gives its processes 30 s to begin, which cannot be set; a busy machine needs more."""
LONGEST_START = 20
MAX_TOKENS = 4  # 4 + 16 + 64 + 256 strings
GROUP = 16

Found = TypeVar("Found")


def run_file(directory: Path, model: Path, **sections: dict[str, Any]) -> Path:
    """A small problem, the transformers engine, frequent versions and checkpoints."""
    settings: dict[str, Any] = {
        "run": RUN,
        "model": str(model),
        "output_directory": str(directory / "runs"),
        "problems": [
            {
                "name": PROBLEM,
                "kind": "python",
                "factory": "tests.faults.instruments:build",
                "prompts": [{"x": " the big"}],
                "alphabet": [" cat", " dog", " ran", " slept"],
                "stop": ".",
                "max_tokens": MAX_TOKENS,
            }
        ],
        "sampling": {
            "engine": "transformers", "actors": 2, "group_size": GROUP, "groups_in_flight": 4,
        },
        "replay": {"deadline_seconds": 600, "slack_trajectories": 512},
        "learner": {
            "steps": 1_000_000, "prompts_per_step": 1, "trajectories_per_prompt": 32,
            "learning_rate": 0.002, "decay": "constant", "lora_rank": 8, "publish_every_steps": 2,
            "evaluate_every_steps": 20, "checkpoint_every_steps": 5,
        },
    }  # fmt: skip
    for name, changes in sections.items():
        settings[name] = settings.get(name, {}) | changes
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


class TrainRun:
    """A run in a directory of its own; started, harmed, stopped.

    Args:
        directory: for the run file, the run and the notes of its processes.
        file: the run file.
    """

    def __init__(self, directory: Path, file: Path) -> None:
        self.file = file
        self.notes_directory = directory / "notes"
        self.notes_directory.mkdir(exist_ok=True)
        self.output = directory / "output.txt"
        self.run_directory = directory / "runs" / RUN
        self.config = yaml.safe_load(file.read_text())
        self.environment: dict[str, str] = {}
        self._client: Any = None
        self._stale_address: str | None = None
        self._starts = self._output_before = 0
        self._resume = False
        self._process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------------------- life

    def start(self, resume: bool = False) -> None:
        self._resume, self._starts = resume, self._starts + 1
        self._output_before = self.output.stat().st_size if self.output.exists() else 0
        self.forget_server()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "posteriori.cli", "train", str(self.file)]
                + (["--resume"] if resume else []),
                cwd=ROOT,
                env={
                    **os.environ,
                    ENVIRONMENT: str(self.notes_directory),
                    "COLUMNS": "300",
                    **self.environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def forget_server(self) -> None:
        """Before a start: a server whose owner was killed may answer for a while under its old address."""
        self._client = None
        try:
            self._stale_address = running_address(self.run_directory / "redis")
        except UserError:
            self._stale_address = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def check_alive(self) -> None:
        """Fail with the run's own words if it has ended."""
        assert self._process is not None
        if self._process.poll() is None:
            return
        output = self.output.read_text()
        if self._starts < LONGEST_START and RAY_IS_SLOW in output[self._output_before :]:
            self.start(self._resume)
            return
        raise AssertionError(f"the run has ended:\n{output[-3000:]}")

    def stop(self, seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Ctrl-C; returns the run's report."""
        os.kill(self.pid, signal.SIGINT)
        assert self._process is not None
        code = self._process.wait(seconds)
        assert code == 0, self.output.read_text()[-3000:]
        report: dict[str, Any] = json.loads((self.run_directory / "report.json").read_text())
        return report

    def kill_driver(self) -> None:
        """SIGKILL; what it had started ends by itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # ---------------------------------------------------------------------------- watching

    @property
    def client(self) -> Any:
        if self._client is None:
            address = self.until(self._address, "Redis to have an address")
            self._client = connect(address, patience_seconds=DEADLINE_SECONDS)
        return self._client

    def _address(self) -> str | None:
        try:
            address = running_address(self.run_directory / "redis")
            if address == self._stale_address:
                return None
            connect(address, retries=0)
        except (StorageUnreachable, UserError):
            return None
        return address

    @property
    def registry(self) -> RunRegistry:
        return RunRegistry(self.client, RUN)

    @property
    def buffer(self) -> RedisBuffer:
        from posteriori.config import ReplayConfig

        return RedisBuffer(self.client, RUN, ReplayConfig.model_validate(self.config["replay"]))

    @property
    def step(self) -> int:
        """Newest learner step that was recorded."""
        return int(self.registry.components().get("learner", _NOBODY).fields.get("step") or 0)

    def until(self, condition: Callable[[], Found | None], what: str) -> Found:
        """Wait until a condition returns something true, or fail with the run's output."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            found = condition()
            if found:
                return found
            self.check_alive()
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what}:\n{self.output.read_text()[-3000:]}")
            time.sleep(0.1)

    def advance(self, steps: int) -> None:
        """Wait until the learner has done more steps than at its highest so far."""
        goal = max([row.step for row in self.registry.history()], default=0) + steps
        self.until(
            lambda: max([row.step for row in self.registry.history()], default=0) >= goal,
            f"step {goal}",
        )

    def sampling_actors(self) -> dict[str, int]:
        """Process ids of the actors that have stored something, by name."""
        return {
            name: int(row.fields["pid"] or 0)
            for name, row in self.registry.components().items()
            if name.startswith("actor") and int(row.fields.get("samples") or 0) > 0
        }

    def learner_pid(self) -> int:
        return int(self.registry.components().get("learner", _NOBODY).fields.get("pid") or 0)

    def redis_pid(self) -> int:
        """0 while it is being started anew."""
        try:
            return int((self.run_directory / "redis" / "redis.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def events(self, kind: str) -> list[str]:
        """Messages of all events of a kind."""
        return [event.message for event in self.registry.events(limit=10_000) if event.kind == kind]

    # ------------------------------------------------------------------------------- notes

    def order(self, what: str, id_: int, target: int, delay_seconds: float) -> None:
        """Have a process killed inside the next operation of a kind."""
        temporary = self.notes_directory / f".order-{what}"
        temporary.write_text(
            json.dumps({"id": id_, "target": target, "delay_seconds": delay_seconds})
        )
        temporary.rename(self.notes_directory / f"order-{what}")

    def notes(self) -> Iterator[dict[str, Any]]:
        """What all processes noted; a line cut off by a kill is left out."""
        for path in sorted(self.notes_directory.glob("notes-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


class _Nobody:
    fields: dict[str, Any] = {}  # noqa: RUF012


_NOBODY = _Nobody()
