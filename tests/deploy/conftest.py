"""The compose file's Redis, Ray head and worker on this machine, started by its own commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.deploy.files import ROOT, command_of, compose, fitted, free_ports, machine_environment

STARTS_SECONDS = 240.0
"""On a machine that does much else besides."""


def wait_until(
    condition: Callable[[], bool],
    what: str,
    log: Path | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Poll a condition; fail with the end of a log, at once where the process has ended."""
    deadline = time.monotonic() + STARTS_SECONDS
    while not condition():
        tail = log.read_text(errors="replace")[-3000:] if log is not None else ""
        assert time.monotonic() < deadline, f"{what} did not come true: {tail}"
        assert process is None or process.poll() is None, f"{what}: its process has ended: {tail}"
        time.sleep(0.25)


@contextmanager
def running(
    command: list[str], environment: dict[str, str], log: Path, cwd: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children, ended at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = []
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for member in family:
            if member.is_running():
                member.kill()


@dataclass(frozen=True)
class Stack:
    """What the compose file starts, on this machine.

    Attributes:
        redis_port, gcs_port, dashboard_port: on this machine.
        environment: of every container of it, with this machine's addresses.
        secrets: the folder that deploy/make-secrets filled.
        runs: the shared folder of runs.
        logs: of its processes.
    """

    redis_port: int
    gcs_port: int
    dashboard_port: int
    environment: dict[str, str]
    secrets: Path
    runs: Path
    logs: Path

    @property
    def dashboard(self) -> str:
        """Where `posteriori submit` goes."""
        return f"http://127.0.0.1:{self.dashboard_port}"


def healthy(service: str, changes: dict[str, str], environment: dict[str, str]) -> bool:
    """Does the compose file's own health check pass?"""
    kind, *test = compose()["services"][service]["healthcheck"]["test"]
    command = [part.replace("$$", "$") for part in test]
    if kind == "CMD-SHELL":
        command = ["sh", "-c", *command]
    result = subprocess.run(
        fitted(command, changes), env=environment, capture_output=True, timeout=60, check=False
    )
    return result.returncode == 0


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis, head and worker; their own commands, but for ports, paths and names of hosts."""
    home = tmp_path_factory.mktemp("stack")
    redis_port, gcs, dashboard, *others = free_ports(7)
    metrics, worker_metrics, agent, worker_agent = others
    secrets, runs, data = home / "secrets", home / "runs", home / "redis"
    data.mkdir()
    runs.mkdir()
    subprocess.run([ROOT / "deploy/make-secrets", secrets], check=True, capture_output=True)
    of_head = compose()["services"]["head"]["environment"]
    variables = {
        name: value.replace("/run/secrets", str(secrets))
        .replace("/data/runs", str(runs))
        .replace("redis:6379", f"127.0.0.1:{redis_port}")
        for name, value in of_head.items()
    }
    environment = machine_environment(**variables)
    # Sockets below it have short paths only in a short folder.
    session = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    with ExitStack() as open_:
        open_.callback(shutil.rmtree, session, ignore_errors=True)
        places = {
            "/run/secrets": str(secrets),
            "--port 6379": f"--port {redis_port} --bind 127.0.0.1",
            "--dir /data": f"--dir {data}",
        }
        redis_log = home / "redis.log"
        open_.enter_context(running(fitted(command_of("redis"), places), environment, redis_log))
        check = {"/run/secrets": str(secrets), "-p 6379": f"-p {redis_port}"}
        wait_until(lambda: healthy("redis", check, environment), "a healthy Redis", redis_log)

        head_log = home / "head.log"
        changes = {
            "--port=6379": f"--port={gcs}",
            "--dashboard-host=0.0.0.0": "--dashboard-host=127.0.0.1",
            "--dashboard-port=8265": f"--dashboard-port={dashboard}",
            "--metrics-export-port=8080": f"--metrics-export-port={metrics}",
        }
        small = ("--num-gpus=0", "--object-store-memory=100000000")
        # Two nodes, and other clusters, share this machine: only the first gets the default port.
        own = ("--num-cpus=4", f"--temp-dir={session}", f"--dashboard-agent-listen-port={agent}")
        head = fitted(command_of("head"), changes, (*small, *own))
        open_.enter_context(running(head, environment, head_log))
        # The address Ray gives itself, even where it was told 127.0.0.1.
        wait_until(lambda: "Local node IP" in head_log.read_text(errors="replace"), "a head")
        check = {"127.0.0.1:6379": f"127.0.0.1:{gcs}"}
        wait_until(lambda: healthy("head", check, environment), "a healthy head", head_log)
        wait_until(lambda: "started" in head_log.read_text(errors="replace"), "a head", head_log)

        changes = {
            "head:6379": f"127.0.0.1:{gcs}",
            "--metrics-export-port=8080": f"--metrics-export-port={worker_metrics}",
        }
        own = ("--num-cpus=2", f"--dashboard-agent-listen-port={worker_agent}")
        worker_log = home / "worker.log"
        worker = fitted(command_of("worker"), changes, (*small, *own))
        open_.enter_context(running(worker, environment, worker_log))
        wait_until(
            lambda: "started" in worker_log.read_text(errors="replace"), "a worker", worker_log
        )
        yield Stack(redis_port, gcs, dashboard, environment, secrets, runs, home)


def run_file(name: str, model: Path, **learner: object) -> dict[str, object]:
    """A run of seconds on the tiny model, whose Redis the environment names."""
    return {
        "run": name,
        "model": str(model),
        "problems": [
            {
                "name": "sharp",
                "kind": "tempered",
                "prompts": [{"x": " the big"}],
                "alphabet": [" cat", " dog"],
                "stop": ".",
                "max_tokens": 2,
                "temperature": 0.7,
            }
        ],
        "sampling": {"engine": "transformers", "group_size": 8, "groups_in_flight": 2},
        "replay": {"redis_url": "environment"},
        "learner": {
            "steps": 4,
            "prompts_per_step": 1,
            "trajectories_per_prompt": 8,
            "evaluate_every_steps": 2,
            "checkpoint_every_steps": 2,
            "warmup_steps": 0,
            **learner,
        },
    }


def posteriori(
    *arguments: str, environment: dict[str, str], cwd: Path, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        ["posteriori", *arguments],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def alive(pid: int) -> bool:
    """Does a process run?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
