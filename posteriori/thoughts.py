"""A tree of thoughts as one flattened Z: branches as spans with terminators of their own.

A thought is a run of tokens that ends in one of two marks: *leaf* ends a branch, *open* says that
the thought has children, which follow one after the other up to *close*. So

    " 6 - 4 = 2 ( 2 + 3 = 5 ; 2 + 3 = 6 ; ) 6 - 4 = 3 ( 3 + 3 = 6 ; )"

is a forest of two first thoughts, the first with two children. ⊤ ends the whole; it is legal where no
bracket is open. An automaton that bounds the depth makes every Z a well-formed tree, so that the
policy, the engines and the oracles need to know nothing of trees.

The posterior is that of a tree that explains Y:

    log R = Σ_thoughts log p_LM(thought | X, its ancestors) + log mean_leaves p_LM(Y | X, path to the leaf)

Siblings do not see each other: each thought is read behind its own ancestors alone, as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori import templates
from posteriori.lm import LanguageModel
from posteriori.metrics import log_mean_exp
from posteriori.moves import LegalMoves
from posteriori.seams import Prompt
from posteriori.tree import TreeBuilder

FloatArray = NDArray[np.float64]

NODES_PER_TREE = 512
"""A packed row is closed at about this size: attention inside a row costs its square."""

Path = tuple[tuple[int, ...], ...]
"""A thought by its tokens and those of its ancestors, outermost first."""


@dataclass(frozen=True)
class Marks:
    """Token ids that structure a flattened tree.

    Attributes:
        open: ends a thought that has children.
        close: ends the children.
        leaf: ends a thought without children.
    """

    open: int
    close: int
    leaf: int


@dataclass(frozen=True)
class Thoughts:
    """A parsed tree: every thought once, in the order in which they are written.

    Attributes:
        inner: thoughts with children.
        leaves: thoughts without.
    """

    inner: list[Path]
    leaves: list[Path]


def parse(tokens: Sequence[int], marks: Marks) -> Thoughts:
    """Read a flattened tree.

    Raises:
        ValueError: a thought is empty or has no end, a bracket does not match, or there is no leaf
            between two brackets.
    """
    inner: list[Path] = []
    leaves: list[Path] = []
    above: list[
        tuple[tuple[int, ...], int]
    ] = []  # ancestors, and the leaves there were before them
    words: list[int] = []
    for place, token in enumerate(map(int, tokens)):
        if token not in (marks.open, marks.close, marks.leaf):
            words.append(token)
            continue
        if (token == marks.close) == bool(words):
            raise ValueError(f"token {place}: a thought is empty or has no end")
        if token == marks.close:
            if not above or above[-1][1] == len(leaves):
                raise ValueError(f"token {place}: it closes what was not opened, or nothing")
            above.pop()
            continue
        path = (*(thought for thought, _ in above), tuple(words))
        words = []
        if token == marks.open:
            inner.append(path)
            above.append((path[-1], len(leaves)))
        else:
            leaves.append(path)
    if words or above or not leaves:
        raise ValueError("the tree is not complete")
    return Thoughts(inner, leaves)


class TreeReward:
    """log R of a flattened tree of thoughts, see the module; implements ``Reward``.

    Args:
        lm: p_LM.
        marks: structure of Z.
        moves: legal Z of an X; ⊤ is legal at complete trees only.
        context: template of the text before the first thought.
        answer: template of Y behind a leaf.
        going_on: what stands in the text where a thought with children ends, scored with it.
        ending: what stands where a leaf ends, scored with it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        marks: Marks,
        moves: Callable[[Prompt], LegalMoves],
        context: str = "{x}",
        answer: str = "{y}",
        going_on: str = ",",
        ending: str = ".",
    ) -> None:
        self.version = 0
        self._lm = lm
        self._marks = marks
        self._moves = moves
        self._context = context
        self._answer = answer
        self._going_on = lm.encode(going_on)
        self._ending = lm.encode(ending)

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``. -inf where ⊤ is illegal."""
        moves = self._moves(prompt)
        trees = [
            {
                int(place): parse(sequence[:place], self._marks)
                for place in np.flatnonzero(moves.stop_legal(sequence))
            }
            for sequence in sequences
        ]
        every = [tree for of_sequence in trees for tree in of_sequence.values()]
        inner = list(dict.fromkeys(path for tree in every for path in tree.inner))
        leaves = list(dict.fromkeys(path for tree in every for path in tree.leaves))
        thought, answer = self._scores(prompt, inner, leaves)
        totals = []
        for sequence, of_sequence in zip(sequences, trees, strict=True):
            total = np.full(len(sequence) + 1, -np.inf)
            for place, tree in of_sequence.items():
                total[place] = sum(thought[path, False] for path in tree.inner)
                total[place] += sum(thought[path, True] for path in tree.leaves)
                total[place] += log_mean_exp([answer[path] for path in tree.leaves])
            totals.append(total)
        return totals

    def _scores(
        self, prompt: Prompt, inner: Sequence[Path], leaves: Sequence[Path]
    ) -> tuple[dict[tuple[Path, bool], float], dict[Path, float]]:
        """log p(thought | ancestors) by (path, is leaf), and log p(Y | path) of every leaf; nats."""
        head = self._lm.context(templates.fill(self._context, prompt.fields).before)
        y = self._lm.encode(templates.fill(self._answer, prompt.fields).before)
        thought: dict[tuple[Path, bool], float] = {}
        answer: dict[Path, float] = {}
        wanted = [(path, False) for path in inner] + [(path, True) for path in leaves]
        builder, places = TreeBuilder(), list[tuple[Path, bool, list[int], list[int]]]()

        def close() -> None:
            (edges,) = self._lm.edge_log_probs([builder.build()])
            for path, is_leaf, own, behind in places:
                thought[path, is_leaf] = float(edges[own].sum())
                if is_leaf:
                    answer[path] = float(edges[behind].sum())

        for path, is_leaf in wanted:
            before = [t for above in path[:-1] for t in (*above, *self._going_on)]
            end = self._ending if is_leaf else self._going_on
            if len(builder) > NODES_PER_TREE:
                close()
                builder, places = TreeBuilder(), []
            nodes = builder.path(-1, [*head, *before])
            own = builder.path(nodes[-1], [*path[-1], *end])
            places.append((path, is_leaf, own, builder.path(own[-1], y) if is_leaf else []))
        if places:
            close()
        return thought, answer
