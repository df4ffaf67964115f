"""A deterministic finite automaton of the user's as a constraint: what it masks, and what it may not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from tests.small import build, exact, string_index


def automaton(function: str, **constraint: Any) -> dict[str, Any]:
    return {"kind": "constrained", "constraint": {"automaton": function, **constraint}}


@pytest.mark.parametrize("floor", [None, -3.0])
def test_no_word_twice(tiny_lm: LanguageModel, floor: float | None) -> None:
    """p(Z⊤ | X) on Z's without a repetition; where it is not masked, e^floor times that on the others."""
    unmasked = {} if floor is None else {"masked": False, "floor_nats": floor}
    found = exact(build(tiny_lm, **automaton("examples.functions:no_word_twice", **unmasked)))
    plain = exact(build(tiny_lm))
    log_r = dict(zip(string_index(plain), plain.log_reward, strict=True))
    repeats = {z for z in log_r if len(set(z)) < len(z)}
    assert 0 < len(repeats) < len(log_r)
    if floor is None:
        log_r = {z: value for z, value in log_r.items() if z not in repeats}
    else:
        log_r = {z: value + floor * (z in repeats) for z, value in log_r.items()}
    assert dict(zip(string_index(found), found.log_reward, strict=True)) == pytest.approx(log_r)


def broken(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    raise KeyError("cat")


def too_narrow(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    return np.zeros((1, 2), dtype=np.int64), np.ones(1, dtype=np.bool_)


def nowhere(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    return np.full((2, len(alphabet)), 2), np.ones(2, dtype=np.bool_)


def fractions(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    return np.zeros((1, len(alphabet))), np.ones(1, dtype=np.bool_)


def never(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    return np.zeros((1, len(alphabet)), dtype=np.int64), np.zeros(1, dtype=np.bool_)


def stateless(lm: LanguageModel, alphabet: Sequence[int]) -> Any:
    return np.zeros((0, len(alphabet)), dtype=np.int64), np.ones(0, dtype=np.bool_)


@pytest.mark.parametrize(
    "function, message",
    [
        (broken, "failed: KeyError: 'cat'"),
        (too_narrow, r"transitions of shape \(1, 2\)"),
        (stateless, r"transitions of shape \(0, 4\)"),
        (nowhere, "state 0 leads to 2 at column 0, of 2 states"),
        (fractions, "float64 transitions"),
        (never, "log Z = -inf"),
    ],
)
def test_what_is_no_automaton(
    tiny_lm: LanguageModel, function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny_lm, **automaton(f"tests.problems.test_automaton:{function.__name__}"))


def test_leads_nowhere(tiny_lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="cannot import automaton 'no_such:thing'"):
        build(tiny_lm, **automaton("no_such:thing"))
