"""A problem of a run file and one of its X's, as commands name them."""

from __future__ import annotations

from pathlib import Path

import torch

from posteriori.config import ProblemConfig, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem, build_problems
from posteriori.seams import Prompt


def choose_problem(
    config: RunConfig, name: str | None, *, without: str | None = None
) -> tuple[Problem, ProblemConfig]:
    """Build one problem of a run file, on the threads that it allows; with its section.

    Args:
        config: the run file.
        name: of the problem; None: the first.
        without: key of the section that is not looked at, because its file is yet to be written.

    Raises:
        UserError: no such problem, or it cannot be built.
    """
    section = _section(config, name)
    if without is not None:
        section = section.model_copy(update={without: None})
    return build_problem(section, _load(config)), section


def choose_among_all(config: RunConfig, name: str | None) -> tuple[Problem, list[Problem]]:
    """One problem of a run file, and all of them, as :func:`choose_problem` builds one.

    Raises:
        UserError: no such problem, or one cannot be built.
    """
    place = config.problems.index(_section(config, name))
    problems = build_problems(config, _load(config))
    return problems[place], problems


def _section(config: RunConfig, name: str | None) -> ProblemConfig:
    sections = {section.name: section for section in config.problems}
    name = name or next(iter(sections))
    if name not in sections:
        raise UserError(
            f"The run file has no problem {name!r}.", f"Choose among {', '.join(sections)}."
        )
    return sections[name]


def _load(config: RunConfig) -> LanguageModel:
    torch.set_num_threads(config.sampling.threads)
    return LanguageModel.load(config.model, dtype=config.dtype)


def refuse_existing(out: Path) -> None:
    """Refuse to overwrite what a command is told to write.

    Raises:
        UserError: it exists.
    """
    if out.exists():
        raise UserError(f"{out} exists.", "Choose another --out, or delete it.")


def choose_prompt(problem: Problem, prompt_id: str | None) -> Prompt:
    """An X by id; None: the first.

    Raises:
        UserError: the problem has no such X.
    """
    if prompt_id is None:
        return problem.prompts[0]
    for prompt in (*problem.prompts, *problem.test_prompts):
        if prompt.id == prompt_id:
            return prompt
    raise UserError(
        f"Problem {problem.name!r} has no prompt {prompt_id!r}.",
        f"Choose among {', '.join(list(problem.by_id)[:10])}, or give a new X with --field x=TEXT.",
    )
