"""Legal moves against enumeration of all strings."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.problems.automata import containing, from_regex

LETTERS = "abc"
IDS = [5, 6, 7]
STOP = 2


def constrained(pattern: str, minimum: int, maximum: int) -> LegalMoves:
    next_state, accepting = from_regex(pattern, LETTERS)
    return LegalMoves(np.array(IDS), STOP, minimum, maximum, next_state, accepting)


def walked(moves: LegalMoves) -> set[tuple[int, ...]]:
    """Every complete Z reachable by legal moves, found by walking them."""
    found, frontier = set(), [((), 0)]
    while frontier:
        prefix, state = frontier.pop()
        row = moves.row(len(prefix), state)
        assert row.any(), f"dead end at {prefix}"
        if row[-1]:
            found.add(prefix)
        for column in np.flatnonzero(row[:-1]):
            token = int(moves.alphabet[column])
            frontier.append(((*prefix, token), moves.step(state, token)))
    return found


@pytest.mark.parametrize("minimum, maximum", [(0, 4), (1, 3), (3, 3)])
@pytest.mark.parametrize("pattern", ["a*b", "(ab|c)*", ".*c.*", "[abc]*", "a?b?c?", "[^b]*"])
def test_legal_paths_are_exactly_the_matching_strings(
    pattern: str, minimum: int, maximum: int
) -> None:
    expected = {
        tuple(IDS[LETTERS.index(letter)] for letter in letters)
        for n in range(minimum, maximum + 1)
        for letters in itertools.product(LETTERS, repeat=n)
        if re.fullmatch(pattern, "".join(letters))
    }
    if not expected:
        with pytest.raises(UserError, match="log Z = -inf"):
            constrained(pattern, minimum, maximum)
        return
    moves = constrained(pattern, minimum, maximum)
    assert walked(moves) == expected
    assert moves.count() == len(expected)


def test_only_the_terminator_is_legal_at_the_cap() -> None:
    moves = LegalMoves.free(IDS, STOP, 1, 3)
    assert moves.row(3, 0).tolist() == [False, False, False, True]
    assert moves.row(0, 0).tolist() == [True, True, True, False]
    assert moves.masks([5, 6])[:, -1].tolist() == [False, True, True]


def test_contains_all_required_tokens() -> None:
    next_state, accepting = containing([6, 7], IDS)
    moves = LegalMoves(np.array(IDS), STOP, 0, 4, next_state, accepting)
    assert walked(moves) == {
        z for n in range(5) for z in itertools.product(IDS, repeat=n) if {6, 7} <= set(z)
    }


def test_tokens_of_several_characters_cross_regex_states() -> None:
    texts = [" red", " blue", " and"]
    next_state, accepting = from_regex(r" (red|blue)( and (red|blue))*", texts)
    moves = LegalMoves(np.array(IDS), STOP, 0, 5, next_state, accepting)
    assert moves.count() == 2 + 4 + 8


@pytest.mark.parametrize("tokens", [[5, 5, 5, 5], [9], [2]])
def test_illegal_sequences_are_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token id"):
        LegalMoves.free(IDS, STOP, 0, 3).masks(tokens)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([5, 5], 2, 0, 3), "lists a token twice"),
        (([5, 2], 2, 0, 3), "also in the alphabet"),
        (([5], 2, 4, 3), "min_tokens is 4"),
        (([], 2, 0, 3), "empty"),
    ],
)
def test_inconsistent_moves_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LegalMoves.free(*arguments)
