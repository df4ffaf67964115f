"""Runs as child processes of the service: ``posteriori train`` on a run file that was checked here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import yaml

from api.errors import ApiError, wrong
from api.settings import ServeSettings
from api.trust import checked_run
from posteriori import config as run_file
from posteriori.commands.run_control import LAUNCHED_NAME, LOG_NAME, RunControl
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import build_problems


class Launcher:
    """Starts and remembers drivers.

    A driver outlives the service: it is a session of its own and the run is found again by its directory.

    Args:
        settings: where runs live and what their files may name.
        base: the model served here, to check problems on.
    """

    def __init__(self, settings: ServeSettings, base: LanguageModel) -> None:
        self._settings = settings
        self._base = base
        self._drivers: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, given: dict[str, object] | str) -> str:
        """Start a new run; return its name.

        Raises:
            ApiError: the run exists, or its file names what it may not.
            UserError: the run file cannot work.
        """
        config = checked_run(self._parsed(given), self._settings)
        if config.model == self._settings.model:
            build_problems(config, self._base)
        directory = config.directory
        if (directory / "run.yaml").exists() or config.run in self._alive():
            raise ApiError(
                409,
                "run_exists",
                f"There is a run {config.run!r} already.",
                f"Resume it with POST /v1/runs/{config.run}/resume, or choose another name.",
                "run_file.run",
            )
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / LAUNCHED_NAME
        file.write_text(run_file.dump(config), encoding="utf-8")
        self._start(config.run, [str(file)])
        return config.run

    def resume(self, run: RunControl) -> None:
        """Continue a run from its last checkpoint.

        Raises:
            ApiError: it is running.
        """
        if run.driver() is not None or run.name in self._alive():
            fix = "Wait until it has ended, or stop it first."
            raise ApiError(409, "run_is_live", f"Run {run.name!r} is running.", fix, "run")
        self._start(run.name, [str(run.directory.path.resolve()), "--resume"])

    def interrupt(self, name: str) -> bool:
        """Ctrl-C to a driver of ours; False: it is none of ours."""
        driver = self._alive().get(name)
        if driver is not None:
            driver.send_signal(signal.SIGINT)
        return driver is not None

    def launching(self, name: str) -> bool:
        """Has a driver of ours not ended?"""
        return name in self._alive()

    def _alive(self) -> dict[str, subprocess.Popen[bytes]]:
        return {name: driver for name, driver in self._drivers.items() if driver.poll() is None}

    def _start(self, name: str, arguments: list[str]) -> None:
        directory = self._settings.runs_directory.resolve() / name
        with (directory / LOG_NAME).open("ab") as log:
            self._drivers[name] = subprocess.Popen(
                [sys.executable, "-m", "posteriori.cli", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
                start_new_session=True,
            )

    def _parsed(self, given: dict[str, object] | str) -> RunConfig:
        data: object = given
        if isinstance(given, str):
            try:
                data = yaml.safe_load(given)
            except (yaml.YAMLError, RecursionError) as cause:
                problem = f"The run file is not YAML: {cause}."
                raise wrong("invalid_run_file", problem, "Mend it.", "run_file") from cause
        try:
            return run_file.parse(data)
        except UserError as cause:
            raise wrong("invalid_run_file", cause.problem, cause.fix, "run_file") from cause
