"""Runs as jobs of a Ray cluster: the same run file as locally, driven by a process on the cluster.

The run file and the files it names travel with the job; the driver is ``posteriori train`` there. Secrets
do not travel: Ray shows a job's environment to everyone who may see the job. They are in the cluster's
own environment (POSTERIORI_REDIS_URL).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from rich.console import Console
from rich.table import Table

from posteriori import config as run_file
from posteriori.config import RunConfig
from posteriori.errors import UserError

RUN_FILE = "run.yaml"
RUNS_ON_CLUSTER = '"${POSTERIORI_RUNS:-$HOME/posteriori-runs}"'
"""Where runs are kept unless told otherwise; the shell of the job's driver says what that is."""
STOP_SECONDS = 180
"""Ray's patience with a driver told to stop, which saves and assesses: 3 s unless told otherwise."""
POLL_SECONDS = 1.0
NOISY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Tell of uploads and sockets at a level that they set themselves."""
AGENT_SECONDS = 60.0
"""A cluster that has just started answers before it takes jobs."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class JobFailed(UserError):
    """A job ended otherwise than well; its log has said why."""


@dataclass(frozen=True)
class Job:
    """A run's driver on the cluster.

    Attributes:
        id: of the Ray job.
        run: name of the run.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's, the end of the log where it failed.
        began_unix_seconds: by the cluster's clock.
    """

    id: str
    run: str
    status: str
    message: str
    began_unix_seconds: float


class Cluster:
    """A Ray cluster by the address of its dashboard, such as ``http://127.0.0.1:8265``.

    Raises:
        UserError: nothing answers there, or not to this token.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with _cluster_errors(address):
            self._client = JobSubmissionClient(address)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)

    def submit(
        self,
        file: Path,
        *,
        resume: bool = False,
        runs: str | None = None,
        extra: Iterable[Path] = (),
    ) -> Job:
        """Start a run, or go on with it.

        Args:
            file: the run file.
            resume: from the last checkpoint, with the buffer as it was.
            runs: folder of runs on the cluster, seen by all its nodes; None: the cluster's
                POSTERIORI_RUNS.
            extra: more files and folders that the run needs, such as the module of a factory.

        Raises:
            UserError: the run file is wrong, a file is missing or lies elsewhere than below the current
                directory, or the run is on the cluster already.
        """
        config = run_file.load(file)
        refuse_password(config)
        for job in self.jobs(config.run):
            if job.status not in OVER:
                raise UserError(
                    f"Run {config.run!r} is {job.status.lower()} on {self.address}, as job {job.id}.",
                    f"Follow it with `posteriori logs {config.run} --address {self.address} -f`, or stop it.",
                )
        where = RUNS_ON_CLUSTER if runs is None else shlex.quote(runs)
        command = f"posteriori train {RUN_FILE} --runs {where}" + (" --resume" if resume else "")
        with TemporaryDirectory(prefix="posteriori-submit-") as directory:
            pack(file, config, extra, Path(directory))
            return self._run(command, config.run, "train", directory)

    def jobs(self, run: str | None = None) -> list[Job]:
        """Drivers of runs, newest first; of one run alone if it is named."""
        with _cluster_errors(self.address):
            found = self._client.list_jobs()
        jobs = [
            Job(
                details.submission_id,
                details.metadata["posteriori_run"],
                details.status.value,
                details.message or "",
                (details.start_time or 0) / 1000,
            )
            for details in found
            if (details.metadata or {}).get("posteriori_command") == "train"
        ]
        jobs.sort(key=lambda job: job.began_unix_seconds, reverse=True)
        return [job for job in jobs if run in (None, job.run)]

    def newest(self, run: str) -> Job:
        """The newest driver of a run; raises UserError if there is none."""
        found = self.jobs(run)
        if not found:
            raise UserError(
                f"No run {run!r} was submitted to {self.address}.",
                f"List them with `posteriori runs --address {self.address}`.",
            )
        return found[0]

    def stop(self, run: str) -> Job:
        """Have a run save and stop, and wait until it has.

        The wish goes through the run's registry, like that of ``posteriori stop`` on one machine: a signal
        from Ray would also end an embedded Redis, before the learner has saved.

        Raises:
            UserError: the run has ended already, or cannot be asked.
        """
        job = self.newest(run)
        if job.status in OVER:
            raise UserError(
                f"Run {run!r} has ended: {job.status.lower()}.", "Only a running one stops."
            )
        asking = self._run(f"posteriori stop {RUNS_ON_CLUSTER}/{run}", run, "stop")
        asked = self.wait(asking)
        if asked.status != "SUCCEEDED":
            # Kept elsewhere than where the cluster keeps its runs, or not up to answering yet.
            with _cluster_errors(self.address):
                self._client.stop_job(job.id)
        return self.wait(job)

    def wait(self, job: Job) -> Job:
        """The job when it has ended."""
        while True:
            with _cluster_errors(self.address):
                details = self._client.get_job_info(job.id)
            if details.status.value in OVER:
                return Job(
                    job.id,
                    job.run,
                    details.status.value,
                    details.message or "",
                    job.began_unix_seconds,
                )
            time.sleep(POLL_SECONDS)

    def log(self, job: Job) -> str:
        """All that the driver has printed."""
        with _cluster_errors(self.address):
            return cast(str, self._client.get_job_logs(job.id))

    def follow(self, job: Job, console: Console) -> Job:
        """Print the driver's log until it ends; return the job as it ended."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.id):
                console.print(text, end="", highlight=False, markup=False, soft_wrap=True)

        with _cluster_errors(self.address):
            asyncio.run(tail())
        return self.wait(job)

    def _run(
        self,
        command: str,
        run: str,
        kind: Literal["train", "stop"],
        working_directory: str | None = None,
    ) -> Job:
        environment: dict[str, Any] = {
            "env_vars": {
                "PYTHONUNBUFFERED": "1",
                "COLUMNS": "200",
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            }
        }
        if working_directory is not None:
            environment["working_dir"] = working_directory
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with _cluster_errors(self.address):
                    id_ = self._client.submit_job(
                        entrypoint=command,
                        submission_id=f"posteriori-{run}-{kind}-{secrets.token_hex(4)}",
                        runtime_env=environment,
                        metadata={"posteriori_run": run, "posteriori_command": kind},
                    )
            except UserError as refused:
                if "No available agent" not in refused.problem or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return Job(id_, run, "PENDING", "", 0.0)


def pack(file: Path, config: RunConfig, extra: Iterable[Path], directory: Path) -> None:
    """Copy a run file, as ``run.yaml``, and what it names into a directory, at the same relative paths.

    Absolute paths are the cluster's own and stay.

    Raises:
        UserError: a file is missing, or lies elsewhere than below the current directory.
    """
    shutil.copyfile(file, directory / RUN_FILE)
    for named in {*_files(config), *extra}:
        if named.is_absolute() and named not in extra:
            continue
        here = Path.cwd().resolve()
        found = (here / named).resolve()
        if not found.is_relative_to(here) or not found.exists():
            what = "does not exist" if not found.exists() else f"is not below {here}"
            raise UserError(
                f"{named}, which the run needs, {what}.",
                "Submit from the folder that holds the run's files.",
            )
        target = directory / found.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(found, target)


def refuse_password(config: RunConfig) -> None:
    """Refuse a password in a run file that travels: everyone who may see the job could read it.

    Raises:
        UserError: there is one.
    """
    if any(
        "@" in url or "password" in url
        for url in (config.replay.redis_url, *config.replay.shard_urls)
    ):
        raise UserError(
            "replay.redis_url holds credentials, which everyone who sees the job could read.",
            "Write `redis_url: environment`, and set POSTERIORI_REDIS_URL on the cluster's nodes.",
        )


def show(jobs: list[Job], console: Console) -> None:
    """Print drivers of runs as a table."""
    table = Table("run", "status", "began", "job")
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began_unix_seconds))
        table.add_row(job.run, job.status.lower(), began, job.id)
    console.print(table)


def _files(config: RunConfig) -> Iterator[Path]:
    for problem in config.problems:
        for source in (problem.prompts, problem.test_prompts):
            if isinstance(source, Path):
                yield source
        if problem.gold is not None and problem.gold.file is not None:
            yield problem.gold.file
        if problem.lookahead is not None:
            yield problem.lookahead


class _cluster_errors:
    """Names what the dashboard refuses, or that it does not answer."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        if isinstance(error, ConnectionError | requests.RequestException | aiohttp.ClientError):
            raise UserError(
                f"No Ray dashboard answers at {self._address}: {_first_line(error)}",
                "Check the address (`ray status` on the head says it) and that the head runs.",
            ) from error
        if isinstance(error, RuntimeError | AuthenticationError):
            raise UserError(
                f"The cluster at {self._address} refuses: {_first_line(error)}",
                "If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on its nodes.",
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
