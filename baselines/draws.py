"""What every inference-time baseline returns: samples, weights, and the budget they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori import metrics
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Prompt

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """What a baseline took, in units that do not depend on the machine.

    Attributes:
        token_forwards: tokens read by the LM that proposes. The tokens that the reward reads are not
            among them: they belong to the reward evaluations.
        reward_evaluations: sequences handed to the reward; all prefixes of one count once, and the
            same Z again within one call is not evaluated again.
    """

    token_forwards: int = 0
    reward_evaluations: int = 0

    def __add__(self, other: Budget) -> Budget:
        return Budget(
            self.token_forwards + other.token_forwards,
            self.reward_evaluations + other.reward_evaluations,
        )


@dataclass(frozen=True, eq=False)
class Draws:
    """N samples of Z for one X.

    Attributes:
        tokens: z without ⊤, N of them.
        log_q: log-probability of z⊤ under what drew it, nats, [N]; NaN where that has no closed form.
        log_reward: log R(z⊤), nats, [N].
        log_weights: importance weights, nats, [N]; equal where a method claims equally weighted
            samples, or makes no claim.
        budget: what they took.
        log_z: the method's own estimate of log Z(X), if it makes one.
    """

    tokens: list[list[int]]
    log_q: FloatArray
    log_reward: FloatArray
    log_weights: FloatArray
    budget: Budget
    log_z: metrics.Estimate | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weights(self) -> FloatArray:
        """Self-normalised weights, [N], sum 1."""
        return metrics.normalised_weights(self.log_weights)


def moves_without_tool(problem: Problem, prompt: Prompt, method: str) -> LegalMoves:
    """Legal continuations of X, for a method that cannot read what a tool answers.

    Raises:
        UserError: a tool answers inside Z.
    """
    moves = problem.moves(prompt)
    if moves.tool is not None:
        raise UserError(
            f"Problem {problem.name!r} has a tool inside Z, which {method} does not read.",
            "Use smc, sir, snis, best-of-n or a method that decodes from left to right.",
        )
    return moves


def scored(
    problem: Problem, prompt: Prompt, tokens: Sequence[Sequence[int]]
) -> tuple[FloatArray, int]:
    """log R(z⊤) of every Z, [N], and the number of distinct ones, which were evaluated once each.

    Raises:
        RewardError: the reward breaks its contract.
    """
    keys = [tuple(int(token) for token in z) for z in tokens]
    distinct = list(dict.fromkeys(keys))
    found = checked_log_reward(
        problem.reward, problem.name, prompt, problem.moves(prompt), [list(key) for key in distinct]
    )
    known = {key: float(scores[-1]) for key, scores in zip(distinct, found, strict=True)}
    return np.array([known[key] for key in keys], dtype=np.float64), len(distinct)


def unweighted(
    problem: Problem,
    prompt: Prompt,
    tokens: list[list[int]],
    log_q: FloatArray | None,
    token_forwards: int,
) -> Draws:
    """Equally weighted samples of a method that needs no reward; scored for whoever compares them.

    The reward evaluations are not the method's own, so its budget has none.
    """
    log_reward, _ = scored(problem, prompt, tokens)
    return Draws(
        tokens=tokens,
        log_q=np.full(len(tokens), np.nan) if log_q is None else log_q,
        log_reward=log_reward,
        log_weights=np.zeros(len(tokens)),
        budget=Budget(token_forwards, 0),
    )
