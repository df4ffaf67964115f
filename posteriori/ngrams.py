"""The n-gram table that a lookahead looks by, from an LM's own distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posteriori.decoding import draw_moves, move_log_q
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.lookahead import LARGEST_TABLE, FloatArray
from posteriori.moves import LegalMoves
from posteriori.rows import Rows

PSEUDO_COUNT = 0.1
"""Visits' worth of the shorter context's row in every row of a table."""

UNIFORM_SHARE = 0.5
"""Of the moves of every other draw: rows are wanted behind actions that the LM would seldom take, too."""


def fit_ngrams(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    moves: LegalMoves,
    draws: int,
    seed: int,
    *,
    order: int = 1,
    exponent: float = 1.0,
) -> tuple[FloatArray, int]:
    """Average the LM's distributions behind the last one or two actions, along draws that know no constraint.

    Half of the draws are the LM's own, over alphabet and lengths; in the other half every other move is
    uniform. A tool's answers are left out. No reward is evaluated.

    Args:
        lm: base LM.
        contexts: token ids that the LM sees before Z, one or more X's.
        moves: of all of them.
        draws: in all, at least one a context.
        seed: of the draws.
        order: actions that a row looks back on, 1 or 2.
        exponent: β, 1/T of a tempered posterior.

    Returns:
        Mean of p^β of each action and of ⊤, p over the whole vocabulary, [M, V, V + 1], as
        :class:`posteriori.lookahead.Lookahead` has it; and the tokens that were read.

    Raises:
        UserError: the alphabet is too large for such a table.
    """
    size = len(moves.alphabet)
    if order not in (1, 2) or size ** (order + 1) > LARGEST_TABLE:
        largest = int(LARGEST_TABLE ** (1 / (order + 1)))
        raise UserError(
            f"A lookahead of order {order} over an alphabet of {size:,} tokens is too large.",
            f"Orders are 1 and 2, the alphabet at most {largest:,} tokens: declare the words that Z may use.",
        )
    free = LegalMoves.free(moves.alphabet, moves.stop, moves.min_tokens, moves.max_tokens)
    memories = size + 1 if order == 2 else 1
    total, visits = np.zeros((memories, size, size + 1)), np.zeros((memories, size))
    each = -(-draws // len(contexts))
    rng = np.random.default_rng(seed)
    spent = 0
    for number, context in enumerate(contexts):
        rows = Rows(lm, context, free)
        rows.select(np.zeros(each, dtype=np.int64))
        before = np.zeros(each, dtype=np.int64)
        roaming = (np.arange(each) + number) % 2 == 1
        for length in range(free.max_tokens):
            places = [(length, 0)] * len(rows)
            drawn = draw_moves(move_log_q(free.scores(rows.logits, places)), rng.random(len(rows)))
            uniform = roaming & (rng.random(len(rows)) < UNIFORM_SHARE)
            drawn[uniform] = rng.integers(size, size=int(uniform.sum()))
            (going,) = np.nonzero(drawn < size)
            if len(going) == 0:
                break
            last = drawn[going]
            rows.select(going)
            rows.advance(moves.alphabet[last])
            powers = np.exp(exponent * (rows.logits - rows.log_normaliser[:, None]))
            np.add.at(total, (before[going], last), powers)
            np.add.at(visits, (before[going], last), 1)
            before = last + 1 if order == 2 else before[going]
            roaming = roaming[going]
        spent += rows.token_forwards
    return smoothed(total, visits), spent


def smoothed(total: FloatArray, visits: FloatArray) -> FloatArray:
    """Means of rows, [M, V, V + 1], each with a share of the mean of all rows behind its last action.

    Args:
        total: sums of rows, [M, V, V + 1].
        visits: their numbers, [M, V].
    """
    every = total.sum(axis=(0, 1)) / max(visits.sum(), 1)
    average = np.maximum(every, np.finfo(np.float64).tiny)
    shorter: FloatArray = total.sum(axis=0) + PSEUDO_COUNT * average
    shorter /= (visits.sum(axis=0) + PSEUDO_COUNT)[:, None]
    if len(total) == 1:
        alone: FloatArray = shorter[None]
        return alone
    table: FloatArray = (total + PSEUDO_COUNT * shorter) / (visits + PSEUDO_COUNT)[..., None]
    return table
