"""log q of given strings under a language model, where there are too many strings to enumerate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posteriori.decoding import log_softmax
from posteriori.lm import LanguageModel, prefix_tree
from posteriori.moves import LegalMoves

FloatArray = NDArray[np.float64]

SEQUENCES_PER_TREE = 16
"""Long strings share little but their prompt, and attention inside a packed row costs its square."""


def sequence_log_q(
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    moves: LegalMoves,
    sequences: Sequence[Sequence[int]],
) -> FloatArray:
    """log q(z⊤) of each sequence, normalised over the legal moves.

    Args:
        lm: the sampler; its model may carry an active LoRA adapter.
        prompt_ids: the policy's prompt, at least one token.
        moves: legal Z.
        sequences: token ids of n legal Z, without ⊤, tool outputs included.

    Returns:
        Nats, float64 [n].

    Raises:
        ValueError: a sequence is not a path of legal moves.
    """
    paths = [[int(token) for token in sequence] for sequence in sequences]
    log_q = np.full(len(paths), np.nan)
    # Neighbours in this order share prefixes and have similar lengths.
    order = sorted(range(len(paths)), key=lambda k: paths[k])
    chunks = [order[i : i + SEQUENCES_PER_TREE] for i in range(0, len(order), SEQUENCES_PER_TREE)]
    packed = [prefix_tree(prompt_ids, [paths[k] for k in chunk]) for chunk in chunks]
    trees = [tree for tree, _ in packed]
    wanted = [np.concatenate(nodes) for _, nodes in packed]
    for index, logits in lm.node_logits(trees, wanted, moves.column_tokens):
        start = 0
        for k in chunks[index]:
            stop = start + len(paths[k]) + 1
            scores = moves.path_scores(logits[start:stop].double().cpu().numpy(), paths[k])
            decides = np.isfinite(scores).any(axis=1)  # elsewhere a tool speaks
            log_moves = log_softmax(scores[decides])
            actions = moves.actions(paths[k])
            columns = [*(moves.columns[token] for token in actions), len(moves.alphabet)]
            log_q[k] = float(log_moves[np.arange(len(columns)), columns].sum())
            start = stop
    return log_q
