"""Functions of the user's that multiply a reward: called on every distinct prefix, named when they fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from posteriori.errors import RewardError
from posteriori.rewards import BoolArray, FloatArray, draw_marks
from posteriori.seams import Prompt, Reward


class FactorReward:
    """Another reward times a positive factor c(Z): log R = log R₀ + log c(text, tokens).

    Args:
        base: R₀.
        log_factor: log c of a whole Z, given its prompt, text and token ids, in nats.
        text: token ids → text.
        floor: values below are raised to it. A finite floor keeps every legal Z in the support: leaving
            R = 0 out of the loss would let q leak mass there at no cost. About 10 below typical values.
        name: what errors call the factor.
    """

    def __init__(
        self,
        base: Reward,
        log_factor: Callable[[Prompt, str, list[int]], float],
        text: Callable[[Sequence[int]], str],
        floor: float = -10.0,
        name: str = "A factor of the reward",
    ) -> None:
        self.base = base
        self._log_factor = log_factor
        self._text = text
        self._floor = floor
        self._name = name

    @property
    def version(self) -> int:
        """That of R₀."""
        return self.base.version

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``."""
        totals = self.base.log_reward(prompt, sequences)
        for z, places in terminable_prefixes(totals, sequences).items():
            text = self._text(z)
            factor = call_named(self._log_factor, (prompt, text, list(z)), self._name, prompt, text)
            if factor == factor:  # NaN is reported with the prefix it belongs to
                factor = max(factor, self._floor)
            for row, prefix in places:
                totals[row][prefix] += factor
        return totals

    def marks(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> dict[str, BoolArray]:
        """Those of R₀."""
        return draw_marks(self.base, prompt, sequences)


def terminable_prefixes(
    totals: Sequence[FloatArray], sequences: Sequence[Sequence[int]]
) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Each distinct prefix with a finite log reward → its places (row, length) in ``totals``."""
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for row, (total, sequence) in enumerate(zip(totals, sequences, strict=True)):
        tokens = tuple(int(token) for token in sequence)
        for prefix in np.flatnonzero(np.isfinite(total)):
            places.setdefault(tokens[:prefix], []).append((row, int(prefix)))
    return places


def call_named(
    function: Callable[..., Any], arguments: tuple[Any, ...], name: str, prompt: Prompt, z: str
) -> Any:
    """Call a function of the user's.

    Raises:
        RewardError: it raised; names it, the prompt and Z.
    """
    try:
        return function(*arguments)
    except Exception as cause:  # anything may go wrong in there
        raise RewardError(
            f"{name} raised {type(cause).__name__} for prompt {prompt.id!r}, Z = {z!r}: {cause}.",
            "Mend it so that it answers for every legal Z, then continue with --resume.",
        ) from cause
