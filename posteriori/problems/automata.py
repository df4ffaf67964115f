"""Hard constraints as automata over the alphabet's tokens.

A function of the user's (``constraint.automaton``) gets the base LM and the alphabet's token ids and returns
``(next_state, accepting)``: for each state and column of the alphabet the state behind that token, ``DEAD`` where it is
not accepted, and whether Z may end in the state. Z starts in state 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import interegular
import numpy as np
from interegular.fsm import State, anything_else
from numpy.typing import NDArray

from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import DEAD
from posteriori.problems.imports import imported

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


def from_function(path: str, lm: LanguageModel, alphabet: Sequence[int], where: str) -> Automaton:
    """The automaton that a function of the user's returns for an alphabet.

    Args:
        path: ``module:function``, called as ``function(lm, alphabet)``.
        lm: the base LM.
        alphabet: token ids, one a column.
        where: what it belongs to, such as "Problem 'p'".

    Raises:
        UserError: the path leads nowhere, the function raises, or what it returns is no automaton over the alphabet.
    """
    function = imported(path, "automaton", where)
    what = f"{where}: automaton {path!r}"
    fix = "Return (next_state [S, V], accepting [S]): whole numbers below S or DEAD, and booleans."
    try:
        next_state, accepting = function(lm, list(alphabet))
        states, ends = np.asarray(next_state), np.asarray(accepting)
    except Exception as cause:  # whatever the user's code raises, told with its cause
        raise UserError(f"{what} failed: {type(cause).__name__}: {cause}.", fix) from cause
    if ends.ndim != 1 or not len(ends) or states.shape != (len(ends), len(alphabet)):
        raise UserError(
            f"{what} has transitions of shape {states.shape} and {ends.shape} accepting states; the alphabet "
            f"has {len(alphabet)} tokens.",
            fix,
        )
    if not np.issubdtype(states.dtype, np.integer) or ends.dtype != np.bool_:
        raise UserError(f"{what} has {states.dtype} transitions and {ends.dtype} accepting.", fix)
    outside = (states != DEAD) & ((states < 0) | (states >= len(ends)))
    if outside.any():
        state, column = np.argwhere(outside)[0]
        raise UserError(
            f"{what}: state {state} leads to {states[state, column]} at column {column}, of {len(ends)} states.",
            fix,
        )
    return states.astype(np.int64), ends


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
