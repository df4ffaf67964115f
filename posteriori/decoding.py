"""Ancestral samples of Z from a language model in this process, on a token budget that can be counted.

For baselines, oracles and experiments. Rollout actors sample through an ``Engine``, which batches
requests that come and go; here one prompt is read once and its n continuations are decoded together
over one KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posteriori.draft import Draft
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.rows import Rows
from posteriori.seams import Sample

FloatArray = NDArray[np.float64]

ROWS_PER_BATCH = 256
"""Continuations decoded together; bounds the memory of the KV cache."""


def sample(
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    moves: LegalMoves,
    n: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Sample]:
    """n independent Z⊤ for one prompt, every move drawn among the legal ones.

    The same seed gives the samples that ``TransformersEngine`` gives for it.

    Args:
        lm: base LM or policy.
        prompt_ids: what the policy sees before Z, at least one token.
        moves: legal continuations.
        n: samples wanted.
        seed: of the draws.
        temperature: divides the masked logits, > 0.
        top_p: moves are drawn from the smallest set of most probable ones that holds this mass
            (Holtzman et al. 2020), in (0, 1].

    Returns:
        n samples; their log q are those of the distribution drawn from (masked, tempered, truncated).

    Raises:
        ValueError: temperature or top_p is out of range.
    """
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be > 0 and top_p {top_p} in (0, 1]")
    uniforms = np.random.default_rng(seed).random((n, moves.max_tokens + 1))
    samples: list[Sample] = []
    for start in range(0, n, ROWS_PER_BATCH):
        rows = uniforms[start : start + ROWS_PER_BATCH]
        samples += _decode(lm, prompt_ids, moves, rows, temperature, top_p)
    return samples


def token_forwards(prompt_ids: Sequence[int], samples: Sequence[Sample]) -> int:
    """Token forwards that drawing ``samples`` of one prompt takes: the prompt once, then every token of Z.

    An upper bound: what stands behind the last of ``max_tokens`` actions is never read, for ⊤ is forced.
    """
    return len(prompt_ids) + sum(len(drawn.tokens) for drawn in samples)


def _decode(
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    moves: LegalMoves,
    uniforms: FloatArray,
    temperature: float,
    top_p: float,
) -> list[Sample]:
    """One Z for each row of ``uniforms`` [R, max_tokens + 1], the random numbers of its draws."""
    drafts = [Draft(moves) for _ in uniforms]
    decoded = Rows(lm, prompt_ids, moves)
    decoded.select(np.zeros(len(drafts), dtype=np.int64))
    read = [0] * len(drafts)  # tokens of each Z read so far: it falls behind where a tool answers
    running = [row for row, draft in enumerate(drafts) if not draft.finished]
    while running:
        places = [p for p, row in enumerate(running) if read[row] == len(drafts[row].tokens)]
        acting = [running[place] for place in places]
        lengths = [drafts[row].actions for row in acting]
        if acting:
            at = [(drafts[row].actions, drafts[row].state) for row in acting]
            log_moves = move_log_q(moves.scores(decoded.logits[places], at), temperature, top_p)
            drawn = draw_moves(log_moves, uniforms[acting, lengths])
            for row, column, log_q in zip(acting, drawn.tolist(), log_moves, strict=True):
                token = int(moves.column_tokens[column])
                drafts[row].act(token, float(log_q[column]), float(log_q[-1]))
        going = [place for place, row in enumerate(running) if not drafts[row].finished]
        running = [running[place] for place in going]
        if running:
            decoded.select(going)
            decoded.advance([drafts[row].tokens[read[row]] for row in running])
        for row in running:
            read[row] += 1
    return [draft.sample() for draft in drafts]


def move_log_q(scores: FloatArray, temperature: float = 1.0, top_p: float = 1.0) -> FloatArray:
    """log q of every move: softmax over the legal ones at a temperature, then cut to its nucleus.

    Args:
        scores: ``LegalMoves.scores`` of the alphabet's columns and ⊤, -inf where illegal, [R, V + 1]; at
            least one legal move in every row.
        temperature: divides the scores.
        top_p: mass of the nucleus; the move that crosses it belongs to it.

    Returns:
        float64 [R, V + 1], normalised, -inf where illegal or cut.
    """
    log_q = log_softmax(scores / temperature)
    if top_p < 1:
        order = np.argsort(-log_q, axis=1, kind="stable")
        ranked = np.exp(np.take_along_axis(log_q, order, axis=1))
        # Kept while the mass before it falls short of top_p.
        kept = np.cumsum(ranked, axis=1) - ranked < top_p
        keep = np.zeros(scores.shape, dtype=np.bool_)
        np.put_along_axis(keep, order, kept, axis=1)
        log_q = log_softmax(np.where(keep, log_q, -np.inf))
    return log_q


def log_softmax(scores: FloatArray) -> FloatArray:
    """Row by row, in float64; [R, V]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    normalised: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def draw_moves(log_moves: FloatArray, uniforms: FloatArray) -> NDArray[np.int64]:
    """The move of each row at its uniform number, by inverting the cumulative distribution."""
    cumulative = np.exp(log_moves).cumsum(axis=1)
    # Scaled by the total, the first column whose mass exceeds u always has mass of its own.
    threshold = uniforms[:, None] * cumulative[:, -1:]
    columns: NDArray[np.int64] = (cumulative <= threshold).sum(axis=1)
    return columns
