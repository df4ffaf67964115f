"""Beam search and diverse beam search over the legal moves: the most probable Z, not a posterior.

Own and plain, because the search of transformers normalises over the whole vocabulary where everything
else here normalises over the legal moves, and no longer ships diverse beams.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from baselines.draws import Draws, FloatArray, moves_without_tool, unweighted
from posteriori.decoding import move_log_q
from posteriori.problems import Problem
from posteriori.rows import Rows
from posteriori.seams import Prompt


@dataclass(frozen=True)
class Hypothesis:
    """A Z, or a beginning of one: its tokens, automaton state and log-probability under the LM."""

    tokens: tuple[int, ...] = ()
    state: int = 0
    log_q: float = 0.0


@dataclass
class _Group:
    """One beam: its running and its finished hypotheses, the best ``width`` of each kept."""

    width: int
    running: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)

    def finish(self, found: list[Hypothesis]) -> None:
        best = sorted(self.finished + found, key=lambda h: -h.log_q)
        self.finished = best[: self.width]

    def hopeless(self) -> bool:
        """log q only falls: a running hypothesis below every kept finished one cannot enter any more."""
        full = len(self.finished) == self.width
        return full and all(h.log_q <= self.finished[-1].log_q for h in self.running)


def beam(problem: Problem, prompt: Prompt, n: int, seed: int, *, times: int = 1) -> Draws:
    """The n most probable Z that a beam of n · ``times`` finds; fewer if there are fewer.

    Nothing is random in it, ``seed`` is there for uniformity.
    """
    return _search(problem, prompt, n, [n * times], 0.0)


def diverse_beam(
    problem: Problem, prompt: Prompt, n: int, seed: int, *, times: int = 1, penalty: float = 1.0
) -> Draws:
    """Diverse beam search (Vijayakumar et al. 2018): n groups of ``times`` beams, their best Z in turn.

    At every step the groups choose in turn, and a token costs ``penalty`` nats for each time that
    earlier groups have chosen it at this step. The penalty steers the search and is not part of log q.
    """
    return _search(problem, prompt, n, [times] * n, penalty)


def _search(problem: Problem, prompt: Prompt, n: int, widths: list[int], penalty: float) -> Draws:
    moves = moves_without_tool(problem, prompt, "beam search")
    stop = len(moves.alphabet)
    groups = [_Group(width) for width in widths]
    rows = Rows(problem.lm, problem.policy_ids(prompt), moves)
    parents = {group: np.zeros(1, dtype=np.int64) for group in range(len(groups))}
    for length in range(moves.max_tokens + 1):
        chosen_before = np.zeros(stop)
        kept: list[int] = []
        last: list[int] = []
        following: dict[int, np.ndarray] = {}
        for number, group in enumerate(groups):
            if not group.running:
                following[number] = np.zeros(0, dtype=np.int64)
                continue
            places = [(length, h.state) for h in group.running]
            log_moves = move_log_q(moves.scores(rows.logits[parents[number]], places))
            totals = np.array([h.log_q for h in group.running])[:, None] + log_moves
            group.finish(
                [
                    Hypothesis(h.tokens, h.state, float(total))
                    for h, total in zip(group.running, totals[:, stop], strict=True)
                    if total > -np.inf
                ]
            )
            places = _best(totals[:, :stop] - penalty * chosen_before, group.width)
            extended = []
            for place, column in places:
                before = group.running[place]
                token = int(moves.alphabet[column])
                extended.append(
                    Hypothesis(
                        (*before.tokens, token),
                        int(moves.next_state[before.state, column]),
                        float(totals[place, column]),
                    )
                )
            group.running = extended
            if group.hopeless():
                group.running = []
            else:
                for _, column in places:
                    chosen_before[column] += 1
            following[number] = len(kept) + np.arange(len(group.running))
            if group.running:
                kept += [int(parents[number][place]) for place, _ in places]
                last += [h.tokens[-1] for h in group.running]
        parents = following
        if not kept:
            break
        rows.select(kept)
        if length + 1 < moves.max_tokens:
            rows.advance(last)
    found = _in_turn([group.finished for group in groups], n)
    return unweighted(
        problem,
        prompt,
        [list(h.tokens) for h in found],
        None,
        rows.token_forwards,
    )


def _in_turn(finished: list[list[Hypothesis]], n: int) -> list[Hypothesis]:
    """n Z, taken from the groups in turn, the best first; repeats only of what the groups agree on."""
    chosen: dict[tuple[int, ...], Hypothesis] = {}
    for rank in range(max(map(len, finished))):
        for group in finished:
            if rank < len(group) and len(chosen) < n:
                chosen.setdefault(group[rank].tokens, group[rank])
    repeats = [group[0] for group in finished if group] if len(finished) > 1 else []
    return [*chosen.values(), *repeats[: n - len(chosen)]]


def _best(scores: FloatArray, width: int) -> list[tuple[int, int]]:
    """Row and column of the ``width`` largest finite scores, best first."""
    order = np.argsort(-scores, axis=None, kind="stable")[:width]
    found = [divmod(int(k), scores.shape[1]) for k in order]
    return [(row, column) for row, column in found if scores[row, column] > -np.inf]
