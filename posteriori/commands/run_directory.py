"""Where a run keeps everything, and who may write there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from posteriori import config as run_file
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel


@dataclass(frozen=True)
class RunDirectory:
    """Layout of a run's directory.

    ``run.yaml`` the resolved run file · ``base-model`` fingerprints of its weights and lookaheads ·
    ``identity`` · ``redis/`` the embedded server's data · ``checkpoints/`` · ``adapter/`` the newest
    adapter, a PEFT directory · ``reward-adapters/`` those of the reward LM, of runs with M steps, whose
    own checkpoints lie in ``reward/`` · ``early-adapters/`` the first seen far from each posterior ·
    ``oracle/`` · ``tensorboard/`` · ``report.md``, ``report.json``, ``plots/`` · of a run that the
    service launched, ``launched.yaml``, its run file, and ``train.log``.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "run.yaml"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def reward_adapters(self) -> Path:
        return self.path / "reward-adapters"

    def early_adapter(self, case: str) -> Path:
        return self.path / "early-adapters" / case.replace("/", "-")

    @property
    def oracle(self) -> Path:
        return self.path / "oracle"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def _base_file(self) -> Path:
        return self.path / "base-model"

    def identity(self) -> str:
        """Tells this run from all others of its name; written when it is first asked for."""
        file = self.path / "identity"
        try:
            if not file.exists():
                file.write_text(secrets.token_hex(8), encoding="utf-8")
            return file.read_text(encoding="utf-8")
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def check_base(self, lm: LanguageModel) -> None:
        """Refuse a base model or a lookahead with other numbers than the run was started with.

        Raises:
            UserError: they differ: adapter, oracle and stored rewards would silently be wrong.
        """
        known = self._base_file.read_text(encoding="utf-8").split("\n")
        if known[0] != lm.fingerprint:
            raise UserError(
                f"{self.path} was started on other weights than {lm.name} holds now.",
                "Bring the old weights back, or start a new run.",
            )
        if known != _fixed_parts(self.load(), lm):
            raise UserError(
                f"{self.path} was started with another lookahead than its file holds now.",
                "Bring the old file back, or start a new run.",
            )

    def check_resumable(self, config: RunConfig) -> None:
        """Refuse to continue this run as another one.

        Raises:
            UserError: no run lives here, or its model, problems or adapter shape differ.
        """
        old = self.load()
        for name, before, now in (
            ("model", old.model, config.model),
            ("dtype", old.dtype, config.dtype),
            ("problems", old.problems, config.problems),
            ("learner.lora_rank", old.learner.lora_rank, config.learner.lora_rank),
            ("learner.lora_targets", old.learner.lora_targets, config.learner.lora_targets),
            ("em", _kind_of_em(old), _kind_of_em(config)),
            # A prompt's server is its hash modulo their number.
            ("replay.shard_urls", len(old.replay.shard_urls), len(config.replay.shard_urls)),
        ):
            if before != now:
                raise UserError(
                    f"`{name}` is not what the run at {self.path} was started with.",
                    "Start a new run under another `run` name.",
                )

    def refuse_existing(self) -> None:
        """Raises UserError: there is a run here already."""
        if self.config_file.exists():
            raise UserError(
                f"{self.path} already holds a run.",
                "Continue it with --resume, or choose another `run` name in the run file.",
            )

    def create(self, config: RunConfig, lm: LanguageModel) -> None:
        """Start a new run here.

        Args:
            config: written as ``run.yaml``.
            lm: its base model, remembered by fingerprint.

        Raises:
            UserError: there is a run here already, or the disk refuses.
        """
        self.refuse_existing()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._base_file.write_text("\n".join(_fixed_parts(config, lm)), encoding="utf-8")
        except OSError as cause:
            raise self._unwritable(cause) from cause
        self.write_config(config)

    def write_config(self, config: RunConfig) -> None:
        """Write ``run.yaml``, whole or not at all.

        Raises:
            UserError: the disk refuses.
        """
        temporary = self.config_file.with_suffix(".tmp")
        try:
            temporary.write_text(run_file.dump(config), encoding="utf-8")
            temporary.rename(self.config_file)
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def _unwritable(self, cause: OSError) -> UserError:
        return UserError(
            f"Cannot write {self.path}: {cause.strerror}.",
            "Free space or choose another output_directory.",
        )

    def load(self) -> RunConfig:
        """The resolved run file of the run that lives here.

        Raises:
            UserError: no run lives here.
        """
        if not self.config_file.exists():
            raise UserError(
                f"No run at {self.path}.",
                "Give the run's directory, such as runs/NAME, or train it first.",
            )
        return run_file.parse(
            yaml.safe_load(self.config_file.read_text(encoding="utf-8")), str(self.config_file)
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: two drivers on one run would both publish versions.

        Raises:
            UserError: another process holds it.
        """
        with (self.path / "lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as cause:
                stream.seek(0)
                raise UserError(
                    f"Process {stream.read().strip() or '?'} is already running {self.path}.",
                    "Wait for it, or stop it with Ctrl-C.",
                ) from cause
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield


def _kind_of_em(config: RunConfig) -> tuple[str, int] | None:
    """What of the ``em`` section a run cannot change: its rounds may grow."""
    return None if config.em is None else (config.em.objective, config.em.lora_rank)


def find(run: str) -> RunDirectory:
    """The directory of a run named by path, or by name under ``runs/``.

    Raises:
        UserError: no run lives there.
    """
    for path in (Path(run), Path("runs") / run):
        if (path / "run.yaml").exists():
            return RunDirectory(path)
    raise UserError(f"No run {run!r}, neither here nor under runs/.", "List them with `ls runs`.")


def _fixed_parts(config: RunConfig, lm: LanguageModel) -> list[str]:
    """Fingerprints of what every adapter of a run belongs to: the base model, and the lookaheads in order.

    Raises:
        UserError: a lookahead's file cannot be read.
    """
    parts = [lm.fingerprint]
    for problem in config.problems:
        if problem.lookahead is not None:
            try:
                content = problem.lookahead.read_bytes()
            except OSError as cause:
                raise UserError(
                    f"Problem {problem.name!r}: cannot read lookahead {problem.lookahead}: {cause.strerror}.",
                    "An adapter belongs to its lookahead: bring the file back.",
                ) from cause
            parts.append(hashlib.blake2b(content, digest_size=16).hexdigest())
    return parts
