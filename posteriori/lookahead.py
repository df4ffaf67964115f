"""What a prefix promises: the mass of the legal Z's it can become, by an n-gram model of the language model.

Masks forbid what can no longer be completed; until then they say nothing, and a constraint that binds late
is met by few draws. Under a bigram or trigram model p̂ of the LM, dynamic programming over the automaton
gives for every prefix

    h(i, s, a) = Σ over legal rests of p̂^β(rest | a),      i actions taken, state s, last actions a,

and log h of the prefix that a move leads to is added to the move's logit, for every sampler of the problem:
an untrained policy walks towards legal ends early, wherever that comes naturally, and training corrects
what n-grams do not know. β is 1/T of a tempered posterior; p̂^β is made of means of p^β. (Zhang et al. 2023
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

LARGEST_TABLE = 4096**2
"""Rows times columns, about; each length of the recursion takes S times as many products."""


@dataclass(frozen=True, eq=False)
class Lookahead:
    """An n-gram table.

    The *memory* of a prefix is what a row looks back on besides the last action: nothing (M = 1, bigrams),
    or the action before that (M = V + 1, trigrams; 0: there is none, k + 1: column k of the alphabet).

    Attributes:
        table: mean p(move | prefix)^β over prefixes of a memory and a last action, p over the LM's whole
            vocabulary, of actions and then of ⊤; [M, V, V + 1], positive.
    """

    table: FloatArray

    @property
    def memories(self) -> int:
        """M."""
        return len(self.table)

    def remembering(
        self, next_state: IntArray, accepting: NDArray[np.bool_]
    ) -> tuple[IntArray, NDArray[np.bool_]]:
        """An automaton that tells prefixes of different last actions apart, as far as the table does.

        State s of the old one is s · M + m of the new one, m = 0 at its start.

        Args:
            next_state: [S, V], ``DEAD`` where an action is not accepted.
            accepting: [S].
        """
        if self.memories == 1:
            return next_state, accepting
        columns = np.arange(next_state.shape[1])
        moved = np.where(next_state == DEAD, DEAD, next_state * self.memories + columns + 1)
        return moved.repeat(self.memories, axis=0), accepting.repeat(self.memories)

    def log_promises(
        self, next_state: IntArray, accepting: NDArray[np.bool_], min_tokens: int, max_tokens: int
    ) -> list[FloatArray]:
        """log h behind each action from each state at each length below ``max_tokens``; [S · M, V] each.

        -inf where no legal Z is left. Where all Z's have one length, ⊤ is not scored; elsewhere it is, at
        ``max_tokens`` too.

        Args:
            next_state: of :meth:`remembering`, [S · M, V].
            accepting: [S · M].
            min_tokens, max_tokens: of Z.
        """
        alive, following = next_state != DEAD, np.maximum(next_state, 0)
        stop = np.log(self.table[:, :, -1]) * (min_tokens < max_tokens)
        stops = np.tile(stop, (len(next_state) // self.memories, 1))
        ends = np.where(alive & accepting[following], stops, -np.inf)
        promises = [ends]
        for length in range(max_tokens - 2, -1, -1):
            with np.errstate(divide="ignore"):
                going = np.where(alive, self._going(promises[-1], following), -np.inf)
            promises.append(going if length + 1 < min_tokens else np.logaddexp(ends, going))
        return promises[::-1]

    def _going(self, behind: FloatArray, following: IntArray) -> FloatArray:
        """log Σ over the action after next of p̂^β times what is promised behind it; [S · M, V]."""
        largest = behind.max(initial=-np.finfo(np.float64).max)
        mass = np.exp(behind - largest)
        going = np.zeros(behind.shape)
        for memory, rows in enumerate(self.table[:, :, :-1]):
            here = following[memory :: self.memories]
            if self.memories == 1:
                going = (mass @ rows.T)[here, np.arange(len(rows))]
            else:
                going[memory :: self.memories] = np.einsum("svc,vc->sv", mass[here], rows)
        found: FloatArray = np.log(going) + largest
        return found


def save(
    path: Path,
    table: FloatArray,
    alphabet: Sequence[int] | IntArray,
    exponent: float,
    model: str,
) -> None:
    """Write an n-gram table as NumPy's .npz.

    Args:
        path: of the file.
        table: [M, V, V + 1].
        alphabet: token ids of its rows.
        exponent: β.
        model: name of the LM, for whoever looks into the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(
            file,
            table=table,
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
            table, known = np.asarray(found["table"], np.float64), found["alphabet"].tolist()
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
    positive = bool((np.isfinite(table) & (table > 0)).all())
    if table.shape not in {(1, size, size + 1), (size + 1, size, size + 1)} or not positive:
        raise UserError(f"{where}: {path} holds no positive table of {size} tokens.", write)
    if not np.isclose(raised, exponent):
        raise UserError(
            f"{where}: {path} is of temperature {1 / raised:g}, the problem of {1 / exponent:g}.",
            write,
        )
    order = [known.index(int(token)) for token in alphabet]
    if len(table) > 1:
        table = table[[0, *(place + 1 for place in order)]]
    return Lookahead(table[:, order][:, :, [*order, size]])
