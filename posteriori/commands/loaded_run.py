"""A finished (or paused) run, loaded for sampling and checking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.transformers_engine import TransformersEngine
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel, model_path
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
        return cls(directory, config, base, build_problems(config, base))

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

    def engine(self, kind: str | None = None) -> Engine:
        """An engine with the newest adapter as version ``POLICY_VERSION``."""
        engine = start_engine(kind or self.config.sampling.engine, self.config)
        engine.add_adapter(POLICY_VERSION, self.directory.adapter)
        return engine


def start_engine(kind: str, config: RunConfig) -> Engine:
    """An engine for the run's base model and adapter rank."""
    if kind == "transformers":
        return TransformersEngine(model_path(config.model), dtype=config.dtype)
    from actors.vllm_engine import VllmEngine

    return VllmEngine(
        model_path(config.model),
        lora_rank=config.learner.lora_rank,
        dtype=config.dtype,
        seed=config.seed,
    )
