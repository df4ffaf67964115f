"""Constraints that masks do not enforce: R has a finite floor where they fail.

Leaving such prefixes out of the loss would let q leak any mass there at no cost, and R = 0 has no
logarithm. So R falls by a finite factor e^floor, and the share of draws that break the constraint is
reported. ``learner.reward_temperature_start`` anneals the floor with the rest of log R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from posteriori.factors import call_named, terminable_prefixes
from posteriori.moves import DEAD, LegalMoves
from posteriori.problems.imports import imported
from posteriori.rewards import BoolArray, FloatArray, draw_marks
from posteriori.seams import Prompt, Reward

Satisfied = Callable[[Prompt, str, tuple[int, ...]], bool]
"""Does a complete Z, given its prompt, text and token ids, satisfy the constraint?"""


class SoftConstraint:
    """R₀ where Z satisfies the constraint, e^floor · R₀ where it does not.

    Args:
        base: R₀.
        satisfied: the constraint.
        text: token ids → text.
        floor_nats: negative.
        name: what errors call the constraint.
        uniform: R = 1 instead of R₀ where Z satisfies the constraint.
    """

    def __init__(
        self,
        base: Reward,
        satisfied: Satisfied,
        text: Callable[[Sequence[int]], str],
        floor_nats: float,
        name: str,
        *,
        uniform: bool = False,
    ) -> None:
        self.base = base
        self._satisfied = satisfied
        self._text = text
        self._floor_nats = floor_nats
        self._name = name
        self._uniform = uniform

    @property
    def version(self) -> int:
        """That of R₀."""
        return self.base.version

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``.

        Raises:
            RewardError: the constraint raised; names it, the prompt and Z.
        """
        totals = self.base.log_reward(prompt, sequences)
        for z, places in terminable_prefixes(totals, sequences).items():
            holds = self._holds(prompt, z)
            for row, prefix in places:
                if not holds:
                    totals[row][prefix] += self._floor_nats
                elif self._uniform:
                    totals[row][prefix] = 0.0
        return totals

    def marks(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> dict[str, BoolArray]:
        """``violating``: complete Z's that break the constraint."""
        violating = np.array([not self._holds(prompt, tuple(map(int, z))) for z in sequences])
        return {**draw_marks(self.base, prompt, sequences), "violating": violating}

    def _holds(self, prompt: Prompt, z: tuple[int, ...]) -> bool:
        text = self._text(z)
        return bool(call_named(self._satisfied, (prompt, text, z), self._name, prompt, text))


def predicate(path: str, where: str) -> Satisfied:
    """A function of the user's, ``function(text, fields)``, as a constraint.

    Raises:
        UserError: the import path leads nowhere.
    """
    function = imported(path, "predicate", where)
    return lambda prompt, text, tokens: bool(function(text, prompt.fields))


def accepted_by(moves: LegalMoves) -> Satisfied:
    """The automaton of masked moves as a constraint on complete Z's."""

    def satisfied(prompt: Prompt, text: str, tokens: tuple[int, ...]) -> bool:
        state = 0
        for token in moves.actions(tokens):
            state = moves.step(state, token)
            if state == DEAD:
                return False
        return bool(moves.accepting[state])

    return satisfied


def all_of(constraints: Sequence[Satisfied]) -> Satisfied:
    """Every one of several constraints."""
    return lambda prompt, text, tokens: all(c(prompt, text, tokens) for c in constraints)
