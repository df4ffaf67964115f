"""Hard constraints as automata over the alphabet's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import interegular
import numpy as np
from interegular.fsm import State, anything_else
from numpy.typing import NDArray

from posteriori.errors import UserError
from posteriori.moves import DEAD

MAX_REQUIRED_TOKENS = 12
"""`contains` needs 2^k states for k tokens."""

Automaton = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""(next_state [S, V], accepting [S]); the start is state 0."""


def from_regex(pattern: str, texts: Sequence[str]) -> Automaton:
    """Token automaton of a regular expression that must match the whole text of Z.

    Args:
        pattern: Python-style regular expression without look-around or back-references.
        texts: text of each alphabet token.

    Raises:
        UserError: the pattern cannot be read.
    """
    try:
        machine = interegular.parse_pattern(pattern).to_fsm().reduce()
    except Exception as cause:  # interegular raises its own, undocumented classes on bad syntax
        raise UserError(
            f"Constraint regex {pattern!r} cannot be read: {cause}.",
            "Use plain regular-expression syntax, without look-around or back-references.",
        ) from cause
    numbers = {machine.initial: 0}
    for state in sorted(machine.states):
        numbers.setdefault(state, len(numbers))
    next_state = np.full((len(numbers), len(texts)), DEAD, dtype=np.int64)
    for state, number in numbers.items():
        for column, text in enumerate(texts):
            reached = _run(machine, state, text)
            if reached is not None:
                next_state[number, column] = numbers[reached]
    accepting = np.zeros(len(numbers), dtype=np.bool_)
    for state in machine.finals:
        accepting[numbers[state]] = True
    return next_state, accepting


def words_pattern(least: int, greatest: int) -> str:
    """Pattern of texts of that many words, separated by spaces; one space before the first is no word."""
    return rf" ?[^ ]+( [^ ]+){{{least - 1},{greatest - 1}}}"


def _run(machine: interegular.FSM, state: State, text: str) -> State | None:
    current = state
    for character in text:
        symbol = machine.alphabet[character if character in machine.alphabet else anything_else]
        following = machine.map.get(current, {}).get(symbol)
        if following is None:
            return None
        current = following
    return current


def containing(required: Sequence[int], alphabet: Sequence[int]) -> Automaton:
    """Automaton of "every one of these tokens occurs at least once"; a state is the set seen so far.

    Raises:
        UserError: a required token is not in the alphabet, or there are too many.
    """
    if len(required) > MAX_REQUIRED_TOKENS:
        raise UserError(
            f"`contains` lists {len(required)} tokens, more than {MAX_REQUIRED_TOKENS}.",
            "List fewer, or use a regex.",
        )
    missing = set(required) - set(alphabet)
    if missing:
        raise UserError(
            f"`contains` asks for token ids {sorted(missing)} that are not in the alphabet.",
            "Add them to the alphabet.",
        )
    bit = {token: 1 << place for place, token in enumerate(required)}
    states = np.arange(1 << len(required))
    next_state = np.stack([states | bit.get(token, 0) for token in alphabet], axis=1).astype(
        np.int64
    )
    accepting = states == states[-1]
    return next_state, accepting
