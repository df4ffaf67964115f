"""Metropolis–Hastings over Z with proposals of the base LM, many independent chains in one batch.

Two kinds of move, chosen by chance at every step:

suffix: keep the first k of n tokens, k uniform in 0 … n, and let the LM write the rest anew. Accepted with
    min(1, R′/R · q(z_{>k}⊤ | z_{≤k}) / q(z′_{>k}⊤ | z_{≤k}) · (n + 1) / (n′ + 1)).
infill: redraw one token, its place uniform in 1 … n, from q(· | what precedes it) without ⊤; what follows is
    kept. Accepted with min(1, R′/R · q(zᵢ | z_{<i}) / q(z′ᵢ | z_{<i})), never where the rest becomes illegal.

Both satisfy detailed balance with the posterior, and a suffix move with k = 0 reaches every Z. All chains
advance in lockstep, so a kept prefix is read again; the budget says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baselines.draws import Budget, Draws, FloatArray, moves_without_tool, scored
from posteriori import decoding
from posteriori.decoding import draw_moves, move_log_q
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.rows import Rows
from posteriori.seams import Prompt, Sample


@dataclass(frozen=True)
class Move:
    """A move of one chain from Z: a suffix move keeps ``place`` tokens, an infill redraws token ``place``."""

    infill: bool
    place: int


@dataclass(frozen=True)
class Proposal:
    """Where a move leads.

    Attributes:
        sample: Z′ with log q of its moves; None if the move breaks the legal moves.
        log_ratio: log of the proposal's reverse over its forward probability.
    """

    sample: Sample | None
    log_ratio: float


def sample(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    steps: int = 64,
    infill_share: float = 0.3,
    lm: LanguageModel | None = None,
) -> Draws:
    """The last states of n independent chains that start from draws of the LM.

    Args:
        problem, prompt: what to sample; no tools inside Z.
        n: chains.
        seed: of starts, proposals and acceptances.
        steps: proposals of each chain.
        infill_share: probability of an infill at each step, in [0, 1).
        lm: what proposes; None: the problem's base LM.

    Raises:
        UserError: a tool answers inside Z.
    """
    if not 0 <= infill_share < 1:
        raise ValueError(f"infill_share {infill_share} must be in [0, 1): infills keep the length")
    moves = moves_without_tool(problem, prompt, "mcmc")
    proposer, ids = lm or problem.lm, problem.policy_ids(prompt)
    rng = np.random.default_rng([seed, 1])
    chains = decoding.sample(proposer, ids, moves, n, seed)
    forwards = decoding.token_forwards(ids, chains)
    known: dict[tuple[int, ...], float] = {}

    def log_reward(samples: Sequence[Sample]) -> list[float]:
        new = [key for key in (tuple(s.tokens) for s in samples) if key not in known]
        known.update(zip(new, scored(problem, prompt, new)[0].tolist() if new else (), strict=True))
        return [known[tuple(s.tokens)] for s in samples]

    values = log_reward(chains)
    for _ in range(steps):
        asked = [_draw_move(chain, infill_share, rng) for chain in chains]
        uniforms = rng.random((n, moves.max_tokens + 1))
        proposals, read = propose(proposer, ids, moves, chains, asked, uniforms)
        forwards += read
        legal = [k for k, proposal in enumerate(proposals) if proposal.sample is not None]
        targets = [proposals[k].sample for k in legal]
        found = log_reward([target for target in targets if target is not None])
        for k, value, uniform in zip(legal, found, rng.random(len(legal)), strict=True):
            if np.log(uniform) < value - values[k] + proposals[k].log_ratio:
                target = proposals[k].sample
                assert target is not None
                chains[k], values[k] = target, value
    return Draws(
        tokens=[list(chain.tokens) for chain in chains],
        log_q=np.full(n, np.nan),
        log_reward=np.array(values),
        log_weights=np.zeros(n),
        budget=Budget(forwards, len(known)),
    )


def _draw_move(chain: Sample, infill_share: float, rng: np.random.Generator) -> Move:
    length = len(chain.tokens)
    if rng.random() < infill_share and length:
        return Move(True, int(rng.integers(length)))
    return Move(False, int(rng.integers(length + 1)))


def suffix_log_ratio(current: Sample, proposed: Sample, kept: int) -> float:
    """log of the reverse over the forward probability of a suffix move, the choice of k included."""

    def log_suffix(z: Sample) -> float:
        return float(z.log_q[kept:].sum(dtype=np.float64) + z.log_q_stop[-1])

    choices = np.log(len(current.tokens) + 1) - np.log(len(proposed.tokens) + 1)
    return log_suffix(current) - log_suffix(proposed) + float(choices)


def propose(
    lm: LanguageModel,
    prompt_ids: Sequence[int],
    moves: LegalMoves,
    chains: Sequence[Sample],
    asked: Sequence[Move],
    uniforms: FloatArray,
) -> tuple[list[Proposal], int]:
    """One proposal for every chain.

    Args:
        lm: what proposes.
        prompt_ids: what it sees before Z.
        moves: legal Z.
        chains: where they are, C of them, with log q under ``lm``.
        asked: the move of each.
        uniforms: random numbers for its draws, [C, max_tokens + 1].

    Returns:
        The proposals, and the tokens that were read.
    """
    writers = [_Writer(moves, chain, move) for chain, move in zip(chains, asked, strict=True)]
    rows = Rows(lm, prompt_ids, moves)
    rows.select(np.zeros(len(writers), dtype=np.int64))
    running = list(range(len(writers)))
    for length in range(moves.max_tokens + 1):
        # at max_tokens only ⊤ is left, whatever the logits are
        places = [(length, writers[k].state) for k in running]
        log_moves = move_log_q(moves.scores(rows.logits, places))
        drawable = log_moves.copy()
        infilling = [place for place, k in enumerate(running) if writers[k].infills_at(length)]
        drawable[infilling, -1] = -np.inf
        drawn = draw_moves(drawable, uniforms[running, length])
        going = [
            place
            for place, k in enumerate(running)
            if writers[k].write(length, log_moves[place], int(drawn[place]))
        ]
        running = [running[place] for place in going]
        if not running:
            break
        rows.select(going)
        if length + 1 < moves.max_tokens:
            rows.advance([writers[k].tokens[-1] for k in running])
    return [writer.proposal() for writer in writers], rows.token_forwards


class _Writer:
    """Writes the Z′ of one move, token by token, partly by copying Z."""

    def __init__(self, moves: LegalMoves, chain: Sample, move: Move) -> None:
        self.tokens: list[int] = []
        self.state = 0
        self._moves, self._chain, self._move = moves, chain, move
        self._log_q: list[float] = []
        self._log_q_stop: list[float] = []
        self._legal = True
        self._infill_log_ratio = 0.0

    def infills_at(self, length: int) -> bool:
        return self._move.infill and length == self._move.place

    def _copied(self, length: int) -> int | None:
        """Column of the move that is copied from Z, None where one is drawn."""
        written = length < self._move.place or (self._move.infill and length > self._move.place)
        if not written:
            return None
        if length == len(self._chain.tokens):
            return len(self._moves.alphabet)
        return self._moves.columns[int(self._chain.tokens[length])]

    def write(self, length: int, log_moves: FloatArray, drawn: int) -> bool:
        """Take the next move; False if that ends Z′, or if it is illegal."""
        copied = self._copied(length)
        column = drawn if copied is None else copied
        self._log_q_stop.append(float(log_moves[-1]))
        if self.infills_at(length):
            old = self._moves.columns[int(self._chain.tokens[length])]
            # Both without ⊤: its mass cancels.
            self._infill_log_ratio = float(log_moves[old] - log_moves[column])
        if log_moves[column] == -np.inf:
            self._legal = False
            return False
        if column == len(self._moves.alphabet):
            return False
        self.tokens.append(int(self._moves.alphabet[column]))
        self.state = int(self._moves.next_state[self.state, column])
        self._log_q.append(float(log_moves[column]))
        return True

    def proposal(self) -> Proposal:
        if not self._legal:
            return Proposal(None, -np.inf)
        target = Sample(
            self.tokens,
            np.asarray(self._log_q, dtype=np.float32),
            np.asarray(self._log_q_stop, dtype=np.float32),
        )
        if self._move.infill:
            return Proposal(target, self._infill_log_ratio)
        return Proposal(target, suffix_log_ratio(self._chain, target, self._move.place))
