"""``posteriori score``: log q and log R of given Z's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.messages import Scored, ScoreResponse
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Prompt


def tokens_of(problem: Problem, prompt: Prompt, z: str | Sequence[int]) -> list[int]:
    """A complete Z as token ids; text is tokenised canonically.

    Raises:
        UserError: it is no path of legal moves, or may not end where it does.
    """
    moves = problem.moves(prompt)
    tokens = problem.lm.encode(z) if isinstance(z, str) else [int(token) for token in z]
    try:
        ends = bool(moves.masks(tokens)[-1, -1])
    except ValueError as cause:
        raise UserError(
            f"Z is illegal: {cause}.",
            f"Use the alphabet's {len(moves.alphabet)} tokens as the constraint allows.",
        ) from cause
    if not ends:
        raise UserError(
            f"Z of {len(tokens)} tokens may not end there.",
            f"It ends after {moves.min_tokens} to {moves.max_tokens} tokens, with the constraint met.",
        )
    return tokens


def scored(
    problem: Problem,
    prompt: Prompt,
    policy: LanguageModel,
    sequences: Sequence[Sequence[int]],
    *,
    reward_known: bool = True,
) -> list[Scored]:
    """log q, log R and log weight of complete Z's; raises RewardError.

    Args:
        problem: of the Z's.
        prompt: X.
        policy: the sampler.
        sequences: legal Z's without ⊤.
        reward_known: does X have all fields that log R reads?
    """
    moves = problem.moves(prompt)
    log_q = sequence_log_q(policy, problem.policy_ids(prompt), moves, sequences)
    log_r: list[float | None] = [None] * len(sequences)
    if reward_known:
        scores = checked_log_reward(
            problem.reward, problem.name, prompt, moves, [list(z) for z in sequences]
        )
        log_r = [float(score[-1]) for score in scores]
    return [
        Scored(
            text=problem.text(tokens),
            tokens=[int(token) for token in tokens],
            log_q=float(q),
            log_reward=r if r is not None and math.isfinite(r) else None,
            log_weight=r - float(q) if r is not None and math.isfinite(r) else None,
        )
        for tokens, q, r in zip(sequences, log_q, log_r, strict=True)
    ]


def show(found: ScoreResponse, console: Console) -> None:
    """Print scores as a table."""
    table = Table("Z", "log q", "log R", "log w")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found.scores:
        numbers = (row.log_q, row.log_reward, row.log_weight)
        table.add_row(row.text, *("–" if n is None else f"{n:.3f}" for n in numbers))
    console.print(table)
