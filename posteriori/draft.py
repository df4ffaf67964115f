"""A Z in the making, action by action: what every sampler keeps of a sequence until it is finished."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from posteriori.moves import LegalMoves
from posteriori.seams import Sample
from posteriori.tools import ToolSpan


@dataclass(eq=False)
class Draft:
    """The actions drawn so far, with what a tool answered in between.

    Attributes:
        moves: legal continuations.
        tokens: Z so far, tool outputs included.
        log_q: of each token, 0 in tool outputs.
        log_q_stop: of ⊤ at every prefix before the last action, -inf in tool outputs.
        spans: tool outputs.
        actions: tokens that the policy wrote.
        state: of the automaton.
        stopped: was ⊤ drawn?
    """

    moves: LegalMoves
    tokens: list[int] = field(default_factory=list)
    log_q: list[float] = field(default_factory=list)
    log_q_stop: list[float] = field(default_factory=list)
    spans: list[ToolSpan] = field(default_factory=list)
    actions: int = 0
    state: int = 0
    stopped: bool = False

    @property
    def finished(self) -> bool:
        """Is there nothing left to draw? At ``max_tokens`` actions ⊤ is certain."""
        return self.stopped or self.actions == self.moves.max_tokens

    def act(self, token: int, log_q: float, log_q_stop: float) -> None:
        """Take the move that was drawn, ⊤ or an action, and what the tool answers to it.

        Args:
            token: a legal move.
            log_q: its log-probability under the behaviour.
            log_q_stop: that of ⊤ at the same prefix.
        """
        self.log_q_stop.append(log_q_stop)
        if token == self.moves.stop:
            self.stopped = True
            return
        self.state = self.moves.step(self.state, token)
        self.tokens.append(token)
        self.log_q.append(log_q)
        self.actions += 1
        answer = self.moves.answer(self.tokens)
        if answer and self.moves.tool is not None:
            start, failed = len(self.tokens), answer == self.moves.tool.failure
            self.spans.append(ToolSpan(start, start + len(answer), failed))
            self.tokens += answer
            self.log_q += [0.0] * len(answer)
            self.log_q_stop += [-np.inf] * len(answer)

    def sample(self) -> Sample:
        """The finished Z."""
        stops = self.log_q_stop if self.stopped else [*self.log_q_stop, 0.0]
        return Sample(
            self.tokens,
            np.asarray(self.log_q, np.float32),
            np.asarray(stops, np.float32),
            tuple(self.spans),
        )
