"""What a declaration that came over HTTP may name: no import paths, no files but those of one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from api.errors import ApiError, wrong
from api.settings import ServeSettings
from posteriori.config import GoldConfig, ProblemConfig, RunConfig
from replay.address import ENVIRONMENT, without_password

Stated = TypeVar("Stated")
"""What a field may hold besides a file."""

MAX_DECLARED_TOKENS = 4096
MAX_WORDS = 64
MAX_PATTERN_CHARACTERS = 256
MAX_REQUIRED_TOKENS = 8
"""Automata grow with the pattern, and as 2^k with k required tokens."""


def checked_problem(
    problem: ProblemConfig, settings: ServeSettings, field: str = "problem"
) -> ProblemConfig:
    """The declaration, with its files found in the allowed folder.

    Raises:
        ApiError: it names what only the operator may name, or asks for too large an automaton.
    """
    constraint = problem.constraint
    if problem.max_tokens > MAX_DECLARED_TOKENS:
        raise wrong(
            "too_complex",
            f"Z of up to {problem.max_tokens} tokens.",
            f"Declare at most {MAX_DECLARED_TOKENS}.",
            f"{field}.max_tokens",
        )
    if constraint is not None:
        if constraint.words is not None and constraint.words[1] > MAX_WORDS:
            raise wrong(
                "too_complex",
                f"Up to {constraint.words[1]} words.",
                f"Allow at most {MAX_WORDS}.",
                f"{field}.constraint.words",
            )
        if len(constraint.regex or "") > MAX_PATTERN_CHARACTERS:
            raise wrong(
                "too_complex",
                f"The regular expression has {len(constraint.regex or '')} characters.",
                f"Write it in at most {MAX_PATTERN_CHARACTERS}.",
                f"{field}.constraint.regex",
            )
        if len(constraint.contains) > MAX_REQUIRED_TOKENS:
            raise wrong(
                "too_complex",
                f"{len(constraint.contains)} tokens are required.",
                f"Require at most {MAX_REQUIRED_TOKENS}.",
                f"{field}.constraint.contains",
            )
    if settings.allow_imports:
        return problem
    named = {
        "factory": problem.factory,
        "constraint.automaton": constraint.automaton if constraint else None,
        "constraint.predicate": constraint.predicate if constraint else None,
        "preference.model": problem.preference.model if problem.preference else None,
        "tool.use": problem.tool.use if problem.tool and problem.tool.use != "calculator" else None,
        "model": _other(problem.model, settings),
        "contrast.model": _other(problem.contrast.model, settings) if problem.contrast else None,
        **{f"terms.{k}.model": _other(t.model, settings) for k, t in enumerate(problem.terms)},
    }
    for where, name in named.items():
        if name is not None:
            raise _refused(f"{field}.{where}", name)
    changes = {
        name: _allowed_if_file(getattr(problem, name), settings, f"{field}.{name}")
        for name in ("prompts", "test_prompts", "lookahead")
    } | {"gold": _gold(problem.gold, settings, f"{field}.gold.file")}
    return problem.model_copy(update=changes)


def checked_run(config: RunConfig, settings: ServeSettings) -> RunConfig:
    """The run file, with its output in the server's folder; raises like :func:`checked_problem`."""
    problems = tuple(
        checked_problem(problem, settings, f"run_file.problems.{index}")
        for index, problem in enumerate(config.problems)
    )
    if not settings.allow_imports:
        if _other(config.model, settings) is not None:
            raise _refused("run_file.model", config.model)
        replay = config.replay
        if replay.redis_url not in ("embedded", ENVIRONMENT):  # the latter the operator has named
            raise _refused("run_file.replay.redis_url", without_password(replay.redis_url))
        if replay.shard_urls:
            raise _refused("run_file.replay.shard_urls", without_password(replay.shard_urls[0]))
        if config.wandb:
            raise _refused("run_file.wandb", "true")
    return config.model_copy(
        update={"problems": problems, "output_directory": settings.runs_directory.resolve()}
    )


def _other(model: str | None, settings: ServeSettings) -> str | None:
    return None if model in (None, "pocket", settings.model) else model


def _allowed_if_file(value: Stated, settings: ServeSettings, field: str) -> Stated | Path:
    return _allowed(value, settings, field) if isinstance(value, Path) else value


def _gold(gold: GoldConfig | None, settings: ServeSettings, field: str) -> GoldConfig | None:
    if gold is None or gold.file is None:
        return gold
    return gold.model_copy(update={"file": _allowed(gold.file, settings, field)})


def _allowed(file: Path, settings: ServeSettings, field: str) -> Path:
    if settings.files_folder is None:
        raise _refused(field, str(file))
    folder = settings.files_folder.resolve()
    found = (folder / file).resolve()
    if not found.is_relative_to(folder):
        raise _refused(field, str(file))
    return found


def _refused(field: str, name: str) -> ApiError:
    return ApiError(
        403,
        "not_allowed",
        f"`{field}` is {name!r}, which a declaration from HTTP may not name.",
        "Leave it out, or ask the operator: --files FOLDER allows the files in a folder, --allow-imports "
        "functions, URLs and other models.",
        field,
    )
