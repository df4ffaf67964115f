"""``posteriori lookahead``: fit the n-gram table by which a problem's samplers look ahead."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from posteriori import lookahead as tables
from posteriori.config import ProblemConfig, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.ngrams import fit_ngrams
from posteriori.problems import Problem, build_problems

MOST_CONTEXTS = 64
"""X's whose draws the table is of."""


def choose_problem(
    config: RunConfig, name: str | None, out: Path, *, without: str
) -> tuple[Problem, ProblemConfig]:
    """A problem of a run file and its section, for a command that writes a file which the section will name.

    Args:
        config: the run file.
        name: of the problem; None: the first.
        out: must not exist.
        without: key of the section that is not looked at.

    Raises:
        UserError: no such problem, ``out`` exists, or the problem cannot be built.
    """
    import torch

    torch.set_num_threads(config.sampling.threads)
    sections = {problem.name: problem for problem in config.problems}
    name = name or next(iter(sections))
    if name not in sections:
        raise UserError(
            f"The run file has no problem {name!r}.", f"Choose among {', '.join(sections)}."
        )
    if out.exists():
        raise UserError(f"{out} exists.", "Choose another --out, or delete it.")
    section = sections[name].model_copy(update={without: None})
    lm = LanguageModel.load(config.model, dtype=config.dtype)
    (problem,) = build_problems(config.model_copy(update={"problems": (section,)}), lm)
    return problem, section


def fit(
    config: RunConfig,
    out: Path,
    *,
    problem_name: str | None,
    draws: int,
    order: int,
    seed: int,
    console: Console,
) -> None:
    """Draw from the base LM and write the table for ``problems[].lookahead``.

    Raises:
        UserError: no such problem, ``out`` exists, the alphabet is too large, or X's differ in theirs.
    """
    # The file that is to be written need not be there yet.
    problem, section = choose_problem(config, problem_name, out, without="lookahead")
    chosen = problem.prompts[:MOST_CONTEXTS]
    moves = problem.moves(chosen[0])
    for prompt in problem.prompts:
        if problem.moves(prompt).alphabet.tolist() != moves.alphabet.tolist():
            raise UserError(
                f"Problem {problem.name!r}: prompt {prompt.id!r} has another alphabet than {chosen[0].id!r}.",
                "A lookahead is of one alphabet: make it a problem of its own.",
            )
    contexts = [problem.policy_ids(prompt) for prompt in chosen]
    exponent = 1 / section.temperature
    table, forwards = fit_ngrams(
        problem.lm, contexts, moves, draws, seed, order=order, exponent=exponent
    )
    tables.save(out, table, moves.alphabet, exponent, problem.lm.name)
    console.print(
        f"Wrote {out}: {len(moves.alphabet)} tokens, {forwards:,} token forwards.\n"
        f"Name it in the run file: problems[].lookahead: {out}",
        highlight=False,
        soft_wrap=True,
    )
