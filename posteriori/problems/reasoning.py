"""Latent reasoning: p(Z | X, Y)^{1/T} ∝ (p(Z | X) · p(Y | X, Z))^{1/T} (paper, sections 4.3 and 4.4).

Y is known in training and unknown at test: the policy sees X alone and learns to reason towards the label it
does not see. The likelihood is that of infilling. Where the labels are listed, a Z after which the LM
prefers a wrong one is penalised besides, as in the paper's classification runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from posteriori.config import RewardTerm
from posteriori.problems.infilling import terms
from posteriori.rewards import BoolArray, FloatArray, ProductReward, draw_marks
from posteriori.seams import Prompt, Reward

__all__ = ["ANSWER", "LabelPenalty", "terms"]

ANSWER = RewardTerm(target="{y}", context="{x}{z}")
"""p(Y | X, Z)."""


class LabelPenalty:
    """Another reward, less a penalty where the LM prefers a wrong label given X and Z.

    Args:
        base: R₀.
        answer: log p(y | X, Z), the field y being the label asked about.
        labels: all of them.
        penalty_nats: subtracted from log R₀ where some other label is more probable than the prompt's y.
    """

    def __init__(
        self, base: Reward, answer: ProductReward, labels: Sequence[str], penalty_nats: float
    ) -> None:
        self.base = base
        self.answer = answer
        self._labels = list(labels)
        self._penalty_nats = penalty_nats

    @property
    def version(self) -> int:
        """That of R₀."""
        return self.base.version

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``."""
        totals = self.base.log_reward(prompt, sequences)
        for total, margin in zip(totals, self._margins(prompt, sequences), strict=True):
            total[margin < 0] -= self._penalty_nats
        return totals

    def marks(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> dict[str, BoolArray]:
        """``mislabelled``: complete Z's after which another label is more probable."""
        wrong = np.array([margin[-1] < 0 for margin in self._margins(prompt, sequences)])
        return {**draw_marks(self.base, prompt, sequences), "mislabelled": wrong}

    def _margins(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """log p(y | X, z₁:ᵢ) less that of the best other label; [n + 1] each, NaN where ⊤ is illegal."""
        scores = {}
        for label in self._labels:
            asked = replace(prompt, fields={**prompt.fields, "y": label})
            scores[label] = self.answer.log_reward(asked, sequences)
        own = scores.pop(prompt.fields["y"])
        margins = []
        for index, score in enumerate(own):
            with np.errstate(invalid="ignore"):  # -inf less -inf, where ⊤ is illegal
                margins.append(score - np.max([other[index] for other in scores.values()], axis=0))
        return margins
