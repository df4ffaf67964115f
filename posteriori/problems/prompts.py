"""The X's of a problem: inline or from a file, trained on or held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posteriori import templates
from posteriori.config import ProblemConfig, Prompts
from posteriori.data import read, refuse_leaks
from posteriori.data.records import Record
from posteriori.errors import UserError
from posteriori.problems.problem import Problem
from posteriori.seams import Prompt


def read_prompts(config: ProblemConfig, source: Prompts | None, prefix: str = "") -> list[Prompt]:
    """Prompts of a source; an X without ``id`` is named by its place, behind ``prefix``.

    Args:
        config: section of the run file.
        source: inline or a file; None: there are none.
        prefix: of the names.

    Raises:
        UserError: no prompts, malformed ones, or two of the same name.
    """
    if source is None:
        return []
    if isinstance(source, Path):
        rows = [record.fields for record in read(source, config.prompts_format)]
    else:
        rows = list(source)
    if not rows:
        raise UserError(
            f"Problem {config.name!r} has no prompts.", "Give at least one, such as {x: Once}."
        )
    prompts = []
    for index, row in enumerate(rows):
        identity = row.get("id", f"{prefix}{index}")
        prompts.append(Prompt(identity, {key: value for key, value in row.items() if key != "id"}))
    _refuse_same_ids(config.name, prompts)
    return prompts


def refuse_trained(config: ProblemConfig, problem: Problem) -> None:
    """Refuse held-out X's on which the policy is conditioned in training too.

    Two X's are the same if ``policy_prompt`` is, filled in and normalised; where a factory's prompts
    lack its fields, if the policy's tokens read the same.

    Raises:
        UserError: names them; or a held-out X has the name of another one.
    """
    _refuse_same_ids(problem.name, (*problem.prompts, *problem.test_prompts))

    def text(prompt: Prompt) -> str:
        if templates.fields(config.policy_prompt) <= set(prompt.fields):
            return templates.fill(config.policy_prompt, prompt.fields).before
        return problem.text(problem.policy_ids(prompt))

    def records(prompts: Sequence[Prompt]) -> list[Record]:
        return [Record({"x": text(prompt)}, f"prompt {prompt.id!r}") for prompt in prompts]

    try:
        refuse_leaks(
            records(problem.prompts), records(problem.test_prompts), lambda item: item.fields["x"]
        )
    except UserError as cause:
        raise UserError(f"Problem {problem.name!r}: {cause.problem}", cause.fix) from cause


def _refuse_same_ids(problem: str, prompts: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise UserError(
                f"Problem {problem!r}: two prompts have the same id, {prompt.id!r}.",
                "Give each its own id.",
            )
        seen.add(prompt.id)
