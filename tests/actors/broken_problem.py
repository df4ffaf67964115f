"""A problem whose reward is NaN, for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import Prompt


class NanReward:
    """log R is NaN everywhere."""

    version = 0

    def log_reward(
        self, prompt: Prompt, sequences: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        return [np.full(len(z) + 1, np.nan) for z in sequences]


def build(config: ProblemConfig, lm: LanguageModel) -> Problem:
    """Factory named in the run file."""
    moves = LegalMoves.free([4, 5, 6], 1, 1, 3)
    return Problem(
        name=config.name,
        prompts=[Prompt("0", {"x": " the"})],
        reward=NanReward(),
        lm=lm,
        policy_prompt=lambda prompt: lm.context(prompt.fields["x"]),
        legal_moves=lambda prompt: moves,
    )
