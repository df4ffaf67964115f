"""What a prefix promises: the mass of the legal Z's it can become, by a bigram model of the language model.

Masks forbid what can no longer be completed; until then they say nothing, and a constraint that binds late
is met by few draws. Under a bigram model p̂ of the LM, dynamic programming over the automaton gives for
every prefix

    h(i, s, a) = Σ over legal rests of p̂^β(rest | a),      i actions taken, state s, last action a,

and log h of the prefix that a move leads to is added to the move's logit, for every sampler of the problem:
an untrained policy walks towards legal ends early, wherever that comes naturally, and training corrects
what bigrams do not know. β is 1/T of a tempered posterior; p̂^β is made of means of p^β. (Zhang et al. 2023
and 2024, GeLaTo and Ctrl-G, guide an LM so by a hidden Markov model.) The posterior stays what it was: h
says where q begins, and what particle filters weigh by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posteriori.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DEAD = -1
"""Automaton state from which no complete Z can be reached."""

LARGEST_ALPHABET = 4096
"""The table has V² entries and each length of the recursion S · V² products."""


@dataclass(frozen=True, eq=False)
class Lookahead:
    """A bigram table.

    Attributes:
        bigrams: mean p(move | prefix)^β over prefixes with a last action, p over the LM's whole vocabulary, of
            actions and then of ⊤; [V, V + 1], positive.
    """

    bigrams: FloatArray

    def log_promises(
        self, next_state: IntArray, accepting: NDArray[np.bool_], min_tokens: int, max_tokens: int
    ) -> list[FloatArray]:
        """log h at each length, [S, V] by state and last action; -inf where no legal Z is left.

        Where all Z's have one length, ⊤ is not scored; elsewhere it is, at ``max_tokens`` too.

        Args:
            next_state: [S, V], ``DEAD`` where an action is not accepted.
            accepting: [S].
            min_tokens, max_tokens: of Z.
        """
        columns = np.arange(next_state.shape[1])
        stop = np.log(self.bigrams[:, -1]) * (min_tokens < max_tokens)
        ends = np.where(accepting[:, None], stop[None], -np.inf)
        alive, following = next_state != DEAD, np.maximum(next_state, 0)
        promises = [ends]
        for length in range(max_tokens - 1, -1, -1):
            behind = np.where(alive, promises[-1][following, columns], -np.inf)
            largest = behind.max(initial=-np.finfo(np.float64).max)
            with np.errstate(divide="ignore"):
                going = np.log(np.exp(behind - largest) @ self.bigrams[:, :-1].T) + largest
            promises.append(going if length < min_tokens else np.logaddexp(ends, going))
        return promises[::-1]


def save(
    path: Path,
    bigrams: FloatArray,
    alphabet: Sequence[int] | IntArray,
    exponent: float,
    model: str,
) -> None:
    """Write a bigram table as NumPy's .npz.

    Args:
        path: of the file.
        bigrams: [V, V + 1].
        alphabet: token ids of its rows.
        exponent: β.
        model: name of the LM, for whoever looks into the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(
            file,
            bigrams=bigrams,
            alphabet=np.asarray(alphabet),
            exponent=np.array(exponent),
            model=np.array(model),
        )


def load(path: Path, alphabet: Sequence[int] | IntArray, exponent: float, where: str) -> Lookahead:
    """Read the table of an alphabet and a temperature.

    Args:
        path: what :func:`save` wrote.
        alphabet: token ids that its rows must be of, in any order.
        exponent: β that it must be of.
        where: named in errors.

    Raises:
        UserError: the file is missing, is something else, or is of another alphabet or β.
    """
    write = "Write one with `posteriori lookahead RUN --out FILE`."
    try:
        with np.load(path, allow_pickle=False) as found:
            bigrams, known = np.asarray(found["bigrams"], np.float64), found["alphabet"].tolist()
            raised = float(found["exponent"])
    except OSError as cause:
        raise UserError(
            f"{where}: cannot read lookahead {path}: {cause.strerror}.", write
        ) from cause
    except (ValueError, KeyError) as cause:
        raise UserError(f"{where}: {path} is no lookahead file: {cause}.", write) from cause
    size = len(known)
    if sorted(known) != sorted(int(token) for token in alphabet):
        raise UserError(f"{where}: {path} is of another alphabet ({size} tokens).", write)
    if bigrams.shape != (size, size + 1) or not (np.isfinite(bigrams) & (bigrams > 0)).all():
        raise UserError(f"{where}: {path} holds no positive table of {size} rows.", write)
    if not np.isclose(raised, exponent):
        raise UserError(
            f"{where}: {path} is of temperature {1 / raised:g}, the problem of {1 / exponent:g}.",
            write,
        )
    order = [known.index(int(token)) for token in alphabet]
    return Lookahead(bigrams[order][:, [*order, size]])
