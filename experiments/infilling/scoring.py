"""log R of whole middles alone.

The reward scores Y behind every prefix of Z, for objectives that look at them; at whole Z's that is
some five times as many tokens as needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posteriori.problems import Problem
from posteriori.rewards import ProductReward, log_likelihood
from posteriori.seams import Prompt


def log_rewards(
    problem: Problem, prompt: Prompt, sequences: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """log R(Z⊤) of complete Z's: the last entries of ``problem.reward.log_reward``; nats, [n]."""
    reward = problem.reward
    if not isinstance(reward, ProductReward) or any(
        term.renormalise or term.token_floor_nats for term, _ in reward.terms
    ):
        return np.array([scores[-1] for scores in reward.log_reward(prompt, sequences)])
    stop = problem.moves(prompt).stop
    found = np.zeros(len(sequences))
    for term, lm in reward.terms:
        found += term.weight * log_likelihood(term, lm, prompt, sequences, stop)
    return found
