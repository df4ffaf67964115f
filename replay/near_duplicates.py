"""Which stored trajectories a new one nearly repeats, found by whoever offers it.

Two Z's of one prompt are near duplicates when their edit distance is below ``tolerance`` · (n + m). To compare
tokens costs their product, and Redis has one thread for all actors, so the actor compares: it asks for the ids
of its prompts, fetches the tokens it has not seen before, and tells the insert script which are near. The script
decides by what is held and at which log R when it runs. Tokens never change under an id, so what is remembered
of them is never stale; two actors that offer near duplicates of each other in the same moment may both be taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_BINS = 256
"""Of a sequence's tokens, modulo this: what two histograms share bounds the distance from below."""

REMEMBERED_BYTES = 64 * 2**20
"""Of tokens and histograms; beyond, what was looked at longest ago is forgotten and fetched again."""

Tokens = NDArray[np.int32]
Seen = tuple[Tokens, NDArray[np.int16]]
"""Tokens, and the histogram of them."""


class NearDuplicates:
    """Finds near duplicates among the stored trajectories of a prompt.

    Args:
        tolerance: share of both lengths together below which an edit distance is near; in (0, 1).
        fetch: given ids, the tokens of those that are still stored.
    """

    def __init__(
        self, tolerance: float, fetch: Callable[[Sequence[str]], Mapping[str, Tokens]]
    ) -> None:
        self._tolerance = tolerance
        self._fetch = fetch
        self._known: OrderedDict[str, Seen] = OrderedDict()
        self._known_bytes = 0

    def find(self, offered: Sequence[tuple[str, Tokens]], stored: Sequence[str]) -> list[list[str]]:
        """Ids near each trajectory of one prompt, among those stored and those offered before it.

        Args:
            offered: id and tokens of each.
            stored: ids of all that the buffer holds of the prompt.

        Returns:
            One list each, itself left out.
        """
        rivals = self._seen(stored)
        held = len(rivals)
        for id_, tokens in offered:
            if id_ not in rivals:
                rivals[id_] = (tokens, _histogram(tokens))
        names = list(rivals)
        row_of = {name: row for row, name in enumerate(names)}
        sequences = [tokens for tokens, _ in rivals.values()]
        lengths = np.array([len(tokens) for tokens in sequences], dtype=np.float64)
        histograms = np.stack([histogram for _, histogram in rivals.values()])
        there = np.arange(len(names)) < held
        found = []
        for id_, tokens in offered:
            row = row_of[id_]
            limits = self._tolerance * (len(tokens) + lengths)
            shared = np.minimum(histograms, histograms[row]).sum(axis=1)
            possible = there & (np.maximum(len(tokens), lengths) - shared < limits)
            possible[row] = False
            those = np.flatnonzero(possible)
            distances = edit_distances(tokens, [sequences[k] for k in those], limits[those])
            found.append([names[k] for k in those[distances < limits[those]]])
            there[row] = True
        return found

    def _seen(self, ids: Sequence[str]) -> dict[str, Seen]:
        """Tokens and histogram of those that are stored; remembers them."""
        unknown = [id_ for id_ in ids if id_ not in self._known]
        if unknown:
            for id_, tokens in self._fetch(unknown).items():
                self._known[id_] = (tokens, _histogram(tokens))
                self._known_bytes += tokens.nbytes + 2 * HISTOGRAM_BINS
        found = {}
        for id_ in ids:
            if id_ in self._known:
                self._known.move_to_end(id_)
                found[id_] = self._known[id_]
        while self._known_bytes > REMEMBERED_BYTES:
            _, (tokens, _) = self._known.popitem(last=False)
            self._known_bytes -= tokens.nbytes + 2 * HISTOGRAM_BINS
        return found


def _histogram(tokens: Tokens) -> NDArray[np.int16]:
    counts = np.bincount(tokens % HISTOGRAM_BINS, minlength=HISTOGRAM_BINS)
    return np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16)


def edit_distances(
    one: Tokens, others: Sequence[Tokens], limits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Levenshtein distance of ``one`` to each of the others, infinite where it is not below the limit.

    A row of the table is one pass over all others at once: within it, reaching column j from any k ≤ j by
    insertions alone is a running minimum.

    Args:
        one: tokens, [n].
        others: tokens, C sequences of up to L.
        limits: one each, [C].
    """
    found = np.full(len(others), np.inf)
    alive = np.arange(len(others))
    longest = max((len(other) for other in others), default=0)
    lengths = np.array([len(other) for other in others], dtype=np.int64)
    table = np.full((len(others), longest), -1, dtype=np.int64)
    for row, other in enumerate(others):
        table[row, : len(other)] = other
    columns = np.arange(longest + 1)
    rows = np.tile(columns, (len(others), 1))
    for i, token in enumerate(one.tolist(), start=1):
        step = np.empty_like(rows)
        step[:, 0] = i
        np.minimum(rows[:, 1:] + 1, rows[:, :-1] + (table != token), out=step[:, 1:])
        rows = np.minimum.accumulate(step - columns, axis=1) + columns
        hopeful = rows.min(axis=1) < limits[alive]
        if not hopeful.all():
            alive, rows, table = alive[hopeful], rows[hopeful], table[hopeful]
        if not len(alive):
            return found
    distances = rows[np.arange(len(alive)), lengths[alive]]
    found[alive] = np.where(distances < limits[alive], distances, np.inf)
    return found
