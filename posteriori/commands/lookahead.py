"""``posteriori lookahead``: fit the n-gram table by which a problem's samplers look ahead."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from posteriori import lookahead as tables
from posteriori.commands.choice import choose_problem, refuse_existing
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.ngrams import fit_ngrams

MOST_CONTEXTS = 64
"""X's whose draws the table is of."""


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
    refuse_existing(out)
    problem, section = choose_problem(config, problem_name, without="lookahead")
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
