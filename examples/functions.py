"""Functions that the run files beside this file name by import path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from posteriori.lm import LanguageModel
from posteriori.moves import DEAD
from posteriori.problems.automata import Automaton

KIND = ("funny", "moving", "warm")
UNKIND = ("dull", "empty")


def at_least_so_many_letters(text: str, fields: Mapping[str, str]) -> bool:
    """A constraint: Z has as many letters as the prompt's field ``letters`` asks for."""
    return sum(map(str.isalpha, text)) >= int(fields["letters"])


def no_word_twice(lm: LanguageModel, alphabet: Sequence[int]) -> Automaton:
    """A constraint: no token occurs twice. A state is the set of tokens seen, a bit for each."""
    seen = np.arange(2 ** len(alphabet))[:, None]
    bit = 1 << np.arange(len(alphabet))
    return np.where(seen & bit, DEAD, seen | bit), np.ones(len(seen), dtype=np.bool_)


def kindness(fields: Mapping[str, str], texts: Sequence[str]) -> list[float]:
    """A reward model: twice the kind words less the unkind ones, where `never` turns the next word round."""
    return [2.0 * _balance(text.split()) for text in texts]


def _balance(words: Sequence[str]) -> int:
    total = 0
    for before, word in zip(["", *words], words, strict=False):
        sign = (word in KIND) - (word in UNKIND)
        total += -sign if before == "never" else sign
    return total
