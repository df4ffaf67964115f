"""Every legal prefix of Z as one compact tree; the complete Z are those at which ⊤ is legal.

A node is a prefix of actions. Where a tool answers, its output is a function of that prefix: it stands
behind the node's last action and makes no nodes of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.tree import TokenTree

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NODES_PER_PACK = 224
"""Prefixes in one packed row: attention costs the square of a row, its prompt is repeated in each."""


@dataclass(frozen=True, eq=False)
class StringTree:
    """All N prefixes of legal Z, level by level; node 0 is the empty prefix.

    Attributes:
        moves: the legal continuations that were enumerated.
        parents: node of the prefix without its last token, -1 at node 0, int64 [N]; never greater
            than the node itself, and ascending within a level.
        columns: mask column of the last token (its place in the alphabet), -1 at node 0, int64 [N].
        depths: prefix lengths in actions, int64 [N].
        states: automaton states, int64 [N].
        strings: nodes that are a complete Z, int64 [count], ascending. "String k" is ``strings[k]``.
    """

    moves: LegalMoves
    parents: IntArray
    columns: IntArray
    depths: IntArray
    states: IntArray
    strings: IntArray

    @classmethod
    def of(cls, moves: LegalMoves, max_strings: int) -> StringTree:
        """Enumerate ``moves``.

        Raises:
            UserError: there are more than ``max_strings`` complete Z; found before any work is done.
        """
        count = moves.count()
        if count > max_strings:
            raise UserError(
                f"There are {count:,} legal Z, more than the {max_strings:,} to be enumerated.",
                "Shorten max_tokens, cut the alphabet, or raise oracle_max_strings.",
            )
        levels = [[np.array([-1]), np.array([-1]), np.array([0])]]
        first = 0
        for length in range(moves.max_tokens):
            states = levels[-1][2]
            legal = _rows(moves, length)[states, :-1]
            local, columns = np.nonzero(legal)
            levels.append([first + local, columns, moves.next_state[states[local], columns]])
            first += len(states)
        depths = np.repeat(np.arange(len(levels)), [len(level[0]) for level in levels])
        parents, columns, states = (
            np.concatenate([level[i] for level in levels]).astype(np.int64) for i in range(3)
        )
        stops = np.stack([_rows(moves, n)[:, -1] for n in range(moves.max_tokens + 1)])
        strings = np.flatnonzero(stops[depths, states])
        return cls(moves, parents, columns, depths, states, strings)

    def __len__(self) -> int:
        """Number of prefixes."""
        return len(self.parents)

    @property
    def count(self) -> int:
        """Number of complete Z."""
        return len(self.strings)

    @cached_property
    def levels(self) -> list[slice]:
        """Nodes of each length."""
        bounds = np.searchsorted(self.depths, np.arange(self.depths[-1] + 2))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]

    @cached_property
    def legal(self) -> BoolArray:
        """Legal moves at every prefix, ⊤ last; bool [N, V + 1]."""
        rows = np.stack([_rows(self.moves, n) for n in range(self.moves.max_tokens + 1)])
        legal: BoolArray = rows[self.depths, self.states]
        return legal

    def scores(self, nodes: IntArray, logits: FloatArray) -> FloatArray:
        """``LegalMoves.scores`` at some nodes, from the logits there; [len(nodes), V + 1]."""
        places = zip(self.depths[nodes].tolist(), self.states[nodes].tolist(), strict=True)
        return self.moves.scores(logits, list(places))

    @cached_property
    def lengths(self) -> IntArray:
        """Length of each string in actions, int64 [count]."""
        return self.depths[self.strings]

    @cached_property
    def first_columns(self) -> IntArray:
        """Mask column of each string's first move (⊤ for the empty Z), int64 [count]."""
        first = np.full(len(self), len(self.moves.alphabet), dtype=np.int64)
        for level in self.levels[1:]:
            parents = self.parents[level]
            first[level] = np.where(parents == 0, self.columns[level], first[parents])
        return first[self.strings]

    @cached_property
    def maximal(self) -> IntArray:
        """Nodes without a legal continuation but ⊤: every string is a prefix of one of them."""
        return np.flatnonzero(~self.legal[:, :-1].any(axis=1))

    @cached_property
    def _answers(self) -> tuple[IntArray, IntArray]:
        """What the tool says behind each node: all token ids in a row, and where each node's begin, [N + 1]."""
        if self.moves.tool is None:
            return np.empty(0, dtype=np.int64), np.zeros(len(self) + 1, dtype=np.int64)
        prefixes: list[tuple[int, ...]] = [()]
        said: list[tuple[int, ...]] = [()]
        actions = self.moves.alphabet[self.columns[1:]].tolist()
        for parent, action in zip(self.parents[1:].tolist(), actions, strict=True):
            prefix = (*prefixes[parent], action)
            said.append(self.moves.answer(prefix))
            prefixes.append(prefix + said[-1])
        return (
            np.asarray(list(itertools.chain.from_iterable(said)), dtype=np.int64),
            np.cumsum([0, *map(len, said)]),
        )

    @cached_property
    def token_depths(self) -> IntArray:
        """Prefix lengths in tokens, tool outputs included, int64 [N]."""
        depths = self.depths.copy()
        behind = np.diff(self._answers[1])
        for level in self.levels[1:]:
            depths[level] = depths[self.parents[level]] + 1 + behind[level]
        return depths

    def path(self, node: int) -> list[int]:
        """Nodes from the empty prefix to ``node``, both included."""
        nodes = [int(node)]
        while nodes[-1]:
            nodes.append(int(self.parents[nodes[-1]]))
        return nodes[::-1]

    def prefix(self, node: int) -> list[int]:
        """Token ids of a prefix, tool outputs included."""
        said, starts = self._answers
        tokens = []
        for n in self.path(node)[1:]:
            tokens.append(int(self.moves.alphabet[self.columns[n]]))
            tokens += said[starts[n] : starts[n + 1]].tolist()
        return tokens

    def tokens(self, string: int) -> list[int]:
        """Token ids of string ``string``, without ⊤."""
        return self.prefix(int(self.strings[string]))

    def index(self, tokens: Sequence[int]) -> int:
        """Which string ``tokens`` is.

        Raises:
            KeyError: it is not a legal Z.
        """
        node = 0
        try:
            actions = self.moves.actions(tokens)
        except ValueError as cause:
            raise KeyError(f"{list(tokens)} is not a legal Z: {cause}") from cause
        for token in actions:
            column = self.moves.columns.get(int(token), -1)
            below = np.flatnonzero((self.parents == node) & (self.columns == column))
            if column < 0 or len(below) == 0:
                raise KeyError(f"{list(tokens)} is not a legal Z")
            node = int(below[0])
        place = int(np.searchsorted(self.strings, node))
        if place == self.count or self.strings[place] != node:
            raise KeyError(f"{list(tokens)} is not a legal Z: it may not stop there")
        return place

    def packs(
        self, wanted: BoolArray, prompt_ids: Sequence[int]
    ) -> Iterator[tuple[TokenTree, IntArray, IntArray]]:
        """Cover the wanted prefixes by packed token trees, each behind its own copy of the prompt.

        Deepest level first, so that a shallow prefix is met as the ancestor of a deep one and costs
        no forward of its own.

        Args:
            wanted: prefixes to cover, bool [N].
            prompt_ids: the prompt, at least one token.

        Yields:
            A tree, the nodes of this StringTree it covers for the first time [K], and their places
            in the tree [K].
        """
        left = wanted.copy()
        prompt = np.asarray(prompt_ids, dtype=np.int64)
        for level in reversed(self.levels):
            here = level.start + np.flatnonzero(left[level])
            here = here[left[here]]
            for start in range(0, len(here), NODES_PER_PACK):
                members = self._with_ancestors(here[start : start + NODES_PER_PACK])
                tree, ends = self._pack(members, prompt)
                fresh = left[members]
                left[members] = False
                yield tree, members[fresh], ends[fresh]

    def _pack(self, members: IntArray, prompt: IntArray) -> tuple[TokenTree, IntArray]:
        """The token tree of some prefixes, and where in it each of them ends.

        Args:
            members: nodes with all their ancestors, ascending.
            prompt: token ids; the empty prefix, ``members[0]``, ends with its last token.
        """
        said, starts = self._answers
        behind = (starts[members + 1] - starts[members])[1:]
        ends = len(prompt) - 1 + np.append(0, np.cumsum(1 + behind))
        actions = ends[1:] - behind
        size = int(ends[-1]) + 1
        tokens = np.empty(size, dtype=np.int64)
        tokens[: len(prompt)] = prompt
        tokens[actions] = self.moves.alphabet[self.columns[members[1:]]]
        # A token follows the one before it in the row, but an action follows its parent's end.
        parents = np.arange(size) - 1
        parents[actions] = ends[np.searchsorted(members, self.parents[members[1:]])]
        depths = np.arange(size)
        depths[actions] = len(prompt) - 1 + self.token_depths[members[1:]] - behind
        for node, action, length in zip(members[1:], actions, behind, strict=True):
            if length:
                span = slice(action + 1, action + 1 + length)
                tokens[span] = said[starts[node] : starts[node + 1]]
                depths[span] = depths[action] + 1 + np.arange(length)
        return TokenTree(tokens, parents, depths), ends

    def _with_ancestors(self, nodes: IntArray) -> IntArray:
        found = [nodes]
        while found[-1][0] > 0:
            found.append(np.unique(self.parents[found[-1]]))
        return np.concatenate(found[::-1])


def _rows(moves: LegalMoves, length: int) -> BoolArray:
    """Legal moves after ``length`` tokens in every automaton state; [S, V + 1]."""
    return np.stack([moves.row(length, state) for state in range(len(moves.accepting))])
