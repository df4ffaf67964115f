"""A finished (or paused) run, loaded for sampling and checking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.engines import start_engine
from posteriori.commands.adapters import use_exported_reward
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problems
from posteriori.seams import Engine

POLICY_VERSION = 1
"""Version under which a loaded adapter is served: the engine needs a number, the run is over."""


@dataclass(frozen=True)
class LoadedRun:
    """Config, base LM, problems and newest adapter of a run."""

    directory: RunDirectory
    config: RunConfig
    base: LanguageModel
    problems: list[Problem]

    @classmethod
    def load(cls, directory: RunDirectory) -> LoadedRun:
        """Load a run.

        Raises:
            UserError: no run lives there, or it has not published an adapter.
        """
        config = directory.load()
        if not directory.adapter.exists():
            raise UserError(
                f"{directory.path} has no adapter yet.",
                "Train it first, or continue it with --resume.",
            )
        base = LanguageModel.load(config.model, dtype=config.dtype)
        directory.check_base(base)
        problems = build_problems(config, base)
        use_exported_reward(directory, config, problems)
        return cls(directory, config, base, problems)

    def policy(self, adapter: Path | None = None) -> LanguageModel:
        """The policy as a language model, for exact log q."""
        return self.base.with_adapter(adapter or self.directory.adapter)

    def problem(self, name: str | None) -> Problem:
        """A problem by name; None: the first.

        Raises:
            UserError: the run has no such problem.
        """
        for problem in self.problems:
            if name is None or problem.name == name:
                return problem
        known = ", ".join(problem.name for problem in self.problems)
        raise UserError(f"The run has no problem {name!r}.", f"Choose among {known}.")

    def engine(self, kind: str | None = None, problems: Sequence[Problem] | None = None) -> Engine:
        """An engine with the newest adapter as version ``POLICY_VERSION``.

        Args:
            kind: ``vllm`` or ``transformers``; None: the run's.
            problems: it must be long enough for these; None: the run's.
        """
        sampling = self.config.sampling
        if kind is not None:
            sampling = sampling.model_copy(update={"engine": kind})
        config = self.config.model_copy(update={"sampling": sampling})
        engine = start_engine(config, problems or self.problems, config.seed)
        engine.add_adapter(POLICY_VERSION, self.directory.adapter)
        return engine
