"""Which tokens may follow which prefix of Z.

Every engine, the learner and every oracle normalise q over the same set: the alphabet and the
terminator ⊤, less the moves that cannot lead to a complete Z. That set is decided here and nowhere
else. A constraint is a deterministic automaton over the alphabet; an unconstrained problem is the
automaton with one accepting state.

At length ``max_tokens`` the only legal move is ⊤, so log q(⊤) = 0 there by normalisation. Without
this pin, zero SubTB loss does not identify the sampler.

A lookahead adds to the logit of each legal move what the prefix behind it promises. It is part of q for
every sampler, as the masks are, and the base LM over these moves is where q begins.

Where a tool answers inside Z, lengths and automaton see the policy's tokens, the *actions*, alone: what
the tool says leaves both where they were. A Z is then the sequence of its actions with the tool's
answer behind every trigger, which is a function of the actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posteriori.errors import UserError
from posteriori.lookahead import DEAD, Lookahead
from posteriori.tools import BoundTool, ToolSpan, action_mask

__all__ = ["DEAD", "LegalMoves"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


LEAST_PROMISE_NATS = -1000.0
"""Of a legal move, were h to underflow."""


@dataclass(frozen=True, eq=False)
class LegalMoves:
    """The legal continuations of every prefix of Z.

    Columns of all masks are ``alphabet[0], …, alphabet[V-1], ⊤``: column V is the terminator.

    Attributes:
        alphabet: token ids Z may use, shape [V], without ⊤, no duplicates.
        stop: token id of the terminator ⊤.
        min_tokens: ⊤ is illegal at prefixes shorter than this.
        max_tokens: ⊤ is forced at prefixes of this length.
        next_state: automaton transitions, shape [S, V], ``DEAD`` where a token is not accepted.
        accepting: states in which ⊤ is accepted, shape [S].
        tool: answers inside Z; None: Z is the policy's alone.
        lookahead: a model of what prefixes promise, which :meth:`looking_ahead` adds; None: masks alone.

    Raises:
        UserError: shapes, ranges or duplicates are wrong, or no complete Z exists.
    """

    alphabet: IntArray
    stop: int
    min_tokens: int
    max_tokens: int
    next_state: IntArray
    accepting: BoolArray
    tool: BoundTool | None = None
    lookahead: Lookahead | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(
                f"min_tokens is {self.min_tokens} and max_tokens is {self.max_tokens}.",
                "Choose 0 <= min_tokens <= max_tokens.",
            )
        if len(np.unique(self.alphabet)) != len(self.alphabet) or len(self.alphabet) == 0:
            raise UserError(
                "The alphabet is empty or lists a token twice.", "List each token once."
            )
        if self.stop in self.alphabet:
            raise UserError(
                f"The terminator (token id {self.stop}) is also in the alphabet.",
                "Remove it there: stopping is a move of its own.",
            )
        if self.next_state.shape != (len(self.accepting), len(self.alphabet)):
            raise UserError(
                f"The automaton's transitions have shape {self.next_state.shape}, expected "
                f"{(len(self.accepting), len(self.alphabet))}.",
                "Give one row a state and one column an alphabet token.",
            )
        if not self._feasible[0, 0]:
            raise UserError(
                "No Z satisfies the constraint within the length bounds, so log Z = -inf.",
                "Raise max_tokens, enlarge the alphabet or relax the constraint.",
            )
        if self.tool is not None and self.tool.triggers.isdisjoint(self.alphabet.tolist()):
            raise UserError(
                "No trigger of the tool is in the alphabet, so it would never be called.",
                "Add a trigger to the alphabet, or leave the tool out.",
            )

    @classmethod
    def free(
        cls,
        alphabet: Sequence[int] | IntArray,
        stop: int,
        min_tokens: int,
        max_tokens: int,
        tool: BoundTool | None = None,
    ) -> LegalMoves:
        """The unconstrained moves: every token anywhere, ⊤ from ``min_tokens`` on."""
        ids = np.asarray(alphabet, dtype=np.int64)
        return cls(
            alphabet=ids,
            stop=stop,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            next_state=np.zeros((1, len(ids)), dtype=np.int64),
            accepting=np.ones(1, dtype=np.bool_),
            tool=tool,
        )

    def looking_ahead(self, lookahead: Lookahead) -> LegalMoves:
        """The same moves with a lookahead, whose automaton tells apart what its table does.

        Raises:
            UserError: the table is of another alphabet.
        """
        size = len(self.alphabet)
        if lookahead.table.shape[1:] != (size, size + 1):
            raise UserError(
                f"The lookahead's table has shape {lookahead.table.shape}, the alphabet {size} tokens.",
                "Write a new one with `posteriori lookahead`.",
            )
        next_state, accepting = lookahead.remembering(self.next_state, self.accepting)
        return replace(self, next_state=next_state, accepting=accepting, lookahead=lookahead)

    @cached_property
    def _feasible(self) -> BoolArray:
        """[max_tokens + 1, S]: can a prefix of length i in state s still be completed?"""
        feasible = np.zeros((self.max_tokens + 1, len(self.accepting)), dtype=np.bool_)
        alive = self.next_state != DEAD
        for length in range(self.max_tokens, -1, -1):
            if length >= self.min_tokens:
                feasible[length] = self.accepting
            if length < self.max_tokens:
                feasible[length] |= (alive & feasible[length + 1][self.next_state]).any(axis=1)
        return feasible

    @cached_property
    def columns(self) -> dict[int, int]:
        """Token id → mask column, ⊤ included."""
        columns = {int(token): column for column, token in enumerate(self.alphabet)}
        columns[self.stop] = len(self.alphabet)
        return columns

    @cached_property
    def column_tokens(self) -> IntArray:
        """Token id of each mask column, shape [V + 1]."""
        return np.append(self.alphabet, self.stop)

    @cached_property
    def _rows(self) -> dict[tuple[int, int], BoolArray]:
        return {}

    def row(self, length: int, state: int) -> BoolArray:
        """Legal moves after a prefix of ``length`` tokens in automaton ``state``; shape [V + 1]."""
        known = self._rows.get((length, state))
        if known is not None:
            return known
        row = np.zeros(len(self.alphabet) + 1, dtype=np.bool_)
        if length < self.max_tokens:
            following = self.next_state[state]
            row[:-1] = (following != DEAD) & self._feasible[length + 1][following]
        row[-1] = length >= self.min_tokens and self.accepting[state]
        self._rows[(length, state)] = row
        return row

    @cached_property
    def _log_promises(self) -> list[FloatArray]:
        assert self.lookahead is not None
        return self.lookahead.log_promises(
            self.next_state, self.accepting, self.min_tokens, self.max_tokens
        )

    @cached_property
    def _promises(self) -> dict[tuple[int, int], FloatArray]:
        return {}

    def promises(self, length: int, state: int) -> FloatArray:
        """log h behind each move after a prefix of ``length`` tokens in automaton ``state``, nats; [V + 1].

        0 for ⊤ and without a lookahead. Entries of illegal moves are not meaningful.
        """
        known = self._promises.get((length, state))
        if known is not None:
            return known
        promises = np.zeros(len(self.alphabet) + 1)
        if self.lookahead is not None and length < self.max_tokens:
            behind = self._log_promises[length][state]
            legal = self.row(length, state)[:-1]
            promises[:-1] = np.where(legal, np.maximum(behind, LEAST_PROMISE_NATS), 0.0)
        self._promises[(length, state)] = promises
        return promises

    def scores(self, logits: FloatArray, places: Sequence[tuple[int, int]]) -> FloatArray:
        """What q is the softmax of: logits with promises added, -inf where illegal.

        Args:
            logits: of the alphabet's columns and ⊤, [R, V + 1].
            places: (length, automaton state) of each row.
        """
        legal = np.stack([self.row(*place) for place in places])
        if self.lookahead is not None:
            logits = logits + np.stack([self.promises(*place) for place in places])
        return np.where(legal, logits, -np.inf)

    def step(self, state: int, token: int) -> int:
        """State after ``token``.

        Raises:
            KeyError: the token is not in the alphabet.
        """
        return int(self.next_state[state, self.columns[token]])

    def states(self, tokens: Sequence[int] | IntArray) -> list[int]:
        """Automaton states before each action and after the last one; length n + 1.

        Raises:
            ValueError: the sequence is not a path of legal moves.
        """
        state, states = 0, [0]
        for position, token in enumerate(tokens):
            column = self.columns.get(int(token))
            if column is None or column == len(self.alphabet):
                raise ValueError(
                    f"token id {int(token)} at position {position} is not in the alphabet"
                )
            if not self.row(position, state)[column]:
                raise ValueError(
                    f"token id {int(token)} at position {position} is not a legal move"
                )
            state = int(self.next_state[state, column])
            states.append(state)
        return states

    def masks(self, tokens: Sequence[int] | IntArray, action: BoolArray | None = None) -> BoolArray:
        """Legal moves at every prefix of ``tokens``; shape [n + 1, V + 1].

        Args:
            tokens: z₁ … zₙ, tool outputs included.
            action: False inside tool outputs, [n]; None: they are recognised.

        Returns:
            All False at prefixes behind which the tool speaks.

        Raises:
            ValueError: the actions are not a path of legal moves, or a tool output is missing.
        """
        states, action = self._path(tokens, action)
        rows = np.stack([self.row(i, s) for i, s in enumerate(states)])
        if action is None:
            return rows
        masks: BoolArray = rows[np.append(0, np.cumsum(action))]
        masks[:-1][~action] = False
        return masks

    def path_promises(
        self, tokens: Sequence[int] | IntArray, action: BoolArray | None = None
    ) -> FloatArray | None:
        """log h of the moves at every prefix, [n + 1, V + 1]; None without a lookahead.

        Arguments and errors are those of :meth:`masks`.
        """
        if self.lookahead is None:
            return None
        states, action = self._path(tokens, action)
        rows = np.stack([self.promises(i, s) for i, s in enumerate(states)])
        return rows if action is None else rows[np.append(0, np.cumsum(action))]

    def path_scores(self, logits: FloatArray, tokens: Sequence[int] | IntArray) -> FloatArray:
        """:meth:`scores` at every prefix of ``tokens``, from the logits there; [n + 1, V + 1].

        All -inf at prefixes behind which a tool speaks. Raises like :meth:`masks`.
        """
        promises = self.path_promises(tokens)
        raised = logits if promises is None else logits + promises
        return np.where(self.masks(tokens), raised, -np.inf)

    def _path(
        self, tokens: Sequence[int] | IntArray, action: BoolArray | None
    ) -> tuple[list[int], BoolArray | None]:
        """States before each action and after the last one, and which tokens are actions; None: all."""
        if action is None and self.tool is not None:
            action = action_mask(len(tokens), self.spans([int(token) for token in tokens]))
        if action is None or action.all():
            return self.states(tokens), None
        return self.states(np.asarray(tokens, dtype=np.int64)[action]), action

    def stop_legal(
        self, tokens: Sequence[int] | IntArray, action: BoolArray | None = None
    ) -> BoolArray:
        """Where ⊤ is legal along ``tokens``; shape [n + 1]; raises like :meth:`masks`."""
        states, action = self._path(tokens, action)
        legal = np.array([self.row(i, s)[-1] for i, s in enumerate(states)])
        if action is not None:
            legal = legal[np.append(0, np.cumsum(action))]
            legal[:-1][~action] = False
        return legal

    def answer(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """What the tool appends behind an action, the last of ``tokens``; empty without a trigger."""
        if self.tool is None or tokens[-1] not in self.tool.triggers:
            return ()
        return self.tool.output(tokens)

    def execute(self, actions: Sequence[int]) -> list[int]:
        """Z from its actions: each followed by what the tool answers."""
        tokens: list[int] = []
        for action in actions:
            tokens.append(int(action))
            tokens += self.answer(tokens)
        return tokens

    def spans(self, tokens: Sequence[int]) -> tuple[ToolSpan, ...]:
        """The tool outputs in a Z.

        Raises:
            ValueError: behind a trigger stands something else.
        """
        if self.tool is None:
            return ()
        spans, place = [], 0
        while place < len(tokens):
            place += 1
            if tokens[place - 1] in self.tool.triggers:
                spans.append(self.tool.read(tokens, place))
                place = spans[-1].stop
        return tuple(spans)

    def actions(self, tokens: Sequence[int]) -> list[int]:
        """Z without tool outputs; raises like :meth:`spans`."""
        mask = action_mask(len(tokens), self.spans(tokens))
        return [int(token) for token, mine in zip(tokens, mask, strict=True) if mine]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest Z, tool outputs of full length included."""
        if self.tool is None:
            return self.max_tokens
        costs = 1 + self.tool.max_output_tokens * np.isin(self.alphabet, list(self.tool.triggers))
        longest = np.zeros(len(self.accepting), dtype=np.int64)
        for length in range(self.max_tokens - 1, -1, -1):
            rows = np.stack([self.row(length, s)[:-1] for s in range(len(self.accepting))])
            longest = np.where(rows, costs + longest[self.next_state], 0).max(axis=1)
        return int(longest[0])

    def count(self) -> int:
        """Number of complete Z (exact, arbitrary precision)."""
        alive = [[int(t) for t in row if t != DEAD] for row in self.next_state]
        paths = [0] * len(self.accepting)
        for length in range(self.max_tokens, -1, -1):
            here = []
            for state, accepts in enumerate(self.accepting):
                total = int(bool(accepts) and length >= self.min_tokens)
                if length < self.max_tokens:
                    total += sum(paths[following] for following in alive[state])
                here.append(total)
            paths = here
        return paths[0]
