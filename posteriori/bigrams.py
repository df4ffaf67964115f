"""The bigram table that a lookahead looks by, from an LM's own draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posteriori.decoding import draw_moves, move_log_q
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.lookahead import LARGEST_ALPHABET, FloatArray
from posteriori.moves import LegalMoves
from posteriori.rows import Rows

PSEUDO_COUNT = 1.0
"""Visits' worth of the average row in every row of the table."""


def fit_bigrams(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    moves: LegalMoves,
    draws: int,
    seed: int,
    exponent: float = 1.0,
) -> tuple[FloatArray, int]:
    """Average the LM's distributions along draws that know of alphabet and lengths alone.

    A tool's answers are left out. No reward is evaluated.

    Args:
        lm: base LM.
        contexts: token ids that the LM sees before Z, one or more X's.
        moves: of all of them.
        draws: in all, at least one a context.
        seed: of the draws.
        exponent: β, 1/T of a tempered posterior.

    Returns:
        Mean of p^β of each action and of ⊤ behind each action, p over the whole vocabulary, [V, V + 1]; and
        the tokens that were read.

    Raises:
        UserError: the alphabet is too large for a table of pairs.
    """
    size = len(moves.alphabet)
    if size > LARGEST_ALPHABET:
        raise UserError(
            f"The alphabet has {size:,} tokens; lookahead counts pairs of at most {LARGEST_ALPHABET:,}.",
            "Declare the words that Z may use as `alphabet`.",
        )
    free = LegalMoves.free(moves.alphabet, moves.stop, moves.min_tokens, moves.max_tokens)
    each = -(-draws // len(contexts))
    rng = np.random.default_rng(seed)
    total, visits, spent = np.zeros((size, size + 1)), np.zeros(size), 0
    for context in contexts:
        rows = Rows(lm, context, free)
        rows.select(np.zeros(each, dtype=np.int64))
        for length in range(free.max_tokens):
            scores = free.scores(rows.logits, [(length, 0)] * len(rows))
            drawn = draw_moves(move_log_q(scores), rng.random(len(rows)))
            (going,) = np.nonzero(drawn < size)
            if len(going) == 0:
                break
            rows.select(going)
            rows.advance(moves.alphabet[drawn[going]])
            log_p = rows.logits - rows.log_normaliser[:, None]
            np.add.at(total, drawn[going], np.exp(exponent * log_p))
            np.add.at(visits, drawn[going], 1)
        spent += rows.token_forwards
    average = np.maximum(total.sum(axis=0) / max(visits.sum(), 1), np.finfo(np.float64).tiny)
    return (total + PSEUDO_COUNT * average) / (visits + PSEUDO_COUNT)[:, None], spent
